//! Where the two servers listen. Binding is the caller's, before anything starts, so that a busy port refuses a start.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use socket2::{Domain, SockAddr, Socket, Type};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// A bound socket of the admin API or of telemetry.
#[derive(Debug)]
pub enum AdminListener {
    /// A TCP address.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixSocket),
}

/// A unix socket and its file; dropping it removes the file.
#[derive(Debug)]
pub struct UnixSocket {
    pub(super) listener: UnixListener,
    pub(super) file: SocketFile,
}

/// The file of a unix socket.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl AdminListener {
    /// The TCP address, with the real port.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A successor may have put its own socket there.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity) {
            // Nothing is left to tell it to.
            drop(fs::remove_file(&self.path));
        }
    }
}

/// Binds a TCP address.
///
/// # Errors
/// What the kernel said: in use, not ours, not permitted.
pub fn bind_tcp(address: SocketAddr) -> io::Result<AdminListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(AdminListener::Tcp(listener))
}

/// Binds a unix socket of mode 0600. A socket file that nobody answers on is replaced.
///
/// # Errors
/// Another process answers there, something that is not a socket has the name, or what the kernel said.
pub fn bind_unix(path: &Path) -> io::Result<AdminListener> {
    let address = SockAddr::unix(path)?;
    clear(path, &address)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.bind(&address)?;
    let found = fs::symlink_metadata(path)?;
    let file = SocketFile { path: path.to_owned(), identity: (found.dev(), found.ino()) };
    // Nobody can connect before `listen`, so there is no moment with wider permissions.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    Ok(AdminListener::Unix(UnixSocket { listener: socket.into(), file }))
}

/// Removes a socket file that a dead process left behind.
fn clear(path: &Path, address: &SockAddr) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "a file that is not a socket has this name",
        ));
    }
    // Non-blocking: a live socket with a full queue says so at once, and does not have us wait.
    let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        Ok(()) | Err(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers there")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unix_socket_is_private_and_leaves_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let bound = bind_unix(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let second = bind_unix(&path).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse, "{second}");
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_anything_else_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        // std leaves the file behind, as a killed process does.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(bind_unix(&path).unwrap());

        fs::write(&path, "precious").unwrap();
        assert_eq!(bind_unix(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn the_socket_of_a_successor_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let old = bind_unix(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let new = bind_unix(&path).unwrap();
        drop(old);
        assert!(path.exists());
        drop(new);
    }
}
