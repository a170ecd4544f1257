//! What the kernel knows of a TCP connection: bytes in its send queue, and how its peer answers.
#![expect(unsafe_code, reason = "ioctl(SIOCOUTQ) and getsockopt(TCP_INFO) have no safe wrapper")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

/// A peer's receive window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Nothing was ever kept back by it.
    Open,
    /// Open, and has kept bytes back before.
    Narrow,
    /// Closed: the peer is alive and does not read.
    Closed,
}

/// How a peer answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Its receive window.
    pub window: Window,
    /// True when the connection is over on this side too: reset, or given up.
    pub closed: bool,
    /// True if both sides send timestamps (RFC 7323), or did while it lasted.
    pub timestamps: bool,
    /// Probes that the peer has left unanswered in a row.
    pub unanswered: u8,
    /// Times that the same bytes were sent again, in a row.
    pub retransmits: u8,
    /// Time since the last acknowledgement came.
    pub last_ack: Duration,
}

/// Bytes written to the socket that its peer has not acknowledged yet (`SIOCOUTQ`, tcp(7)).
///
/// # Errors
/// What the kernel said.
pub fn unsent(socket: impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open for as long as it is borrowed, and TIOCOUTQ (= SIOCOUTQ) writes one int.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(bytes).unwrap_or_default())
}

/// The first part of Linux's `struct tcp_info` (include/uapi/linux/tcp.h), up to `tcpi_snd_wnd` (Linux 5.4).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct TcpInfo {
    state_to_options: [u8; 8],
    rto_to_reordering: [u32; 4 + 5 + 4 + 8 + 3],
    pacing_to_bytes_received: [u64; 4],
    segs: [u32; 2],
    notsent_to_data_segs_out: [u32; 4],
    delivery_to_sndbuf_limited: [u64; 4],
    delivered: [u32; 2],
    bytes_sent_retrans: [u64; 2],
    dsack_dups: u32,
    reord_seen: u32,
    rcv_ooopack: u32,
    snd_wnd: u32,
}

/// `TCPI_OPT_TIMESTAMPS` of include/uapi/linux/tcp.h.
const TIMESTAMPS: u8 = 1;

/// `TCP_CLOSE` of include/net/tcp_states.h.
const CLOSE: u8 = 7;

impl TcpInfo {
    /// `tcpi_state`: byte 0.
    const fn state(&self) -> u8 {
        self.state_to_options[0]
    }

    /// `tcpi_retransmits`: byte 2.
    const fn retransmits(&self) -> u8 {
        self.state_to_options[2]
    }

    /// From `tcpi_snd_wnd`, and `tcpi_rwnd_limited`: after delivery_rate and busy_time.
    const fn window(&self) -> Window {
        match (self.snd_wnd, self.delivery_to_sndbuf_limited[2]) {
            (0, _) => Window::Closed,
            (_, 0) => Window::Open,
            _ => Window::Narrow,
        }
    }

    /// `tcpi_probes`: byte 3.
    const fn probes(&self) -> u8 {
        self.state_to_options[3]
    }

    /// `tcpi_options`: byte 5.
    const fn options(&self) -> u8 {
        self.state_to_options[5]
    }

    /// `tcpi_last_ack_recv`, milliseconds: after rto ato snd_mss rcv_mss, unacked sacked lost retrans fackets,
    /// last_data_sent last_ack_sent last_data_recv.
    const fn last_ack_recv(&self) -> u32 {
        self.rto_to_reordering[12]
    }
}

/// How the peer of a connection answers.
///
/// # Errors
/// What the kernel said, or `Unsupported` on a kernel too old to tell.
pub fn progress(socket: impl AsFd) -> io::Result<Progress> {
    let mut info = TcpInfo::default();
    let wanted = size_of::<TcpInfo>();
    let mut length = libc::socklen_t::try_from(wanted).unwrap_or_default();
    let descriptor = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `length` bytes into `info`, which is plain old data of that size.
    let result = unsafe {
        libc::getsockopt(
            descriptor,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if (length as usize) < wanted {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(Progress {
        window: info.window(),
        closed: info.state() == CLOSE,
        timestamps: info.options() & TIMESTAMPS != 0,
        unanswered: info.probes(),
        retransmits: info.retransmits(),
        last_ack: Duration::from_millis(u64::from(info.last_ack_recv())),
    })
}

#[cfg(test)]
mod tests {
    use std::{io::Write, net::TcpListener};

    use super::*;

    #[test]
    fn the_layout_is_the_kernels() {
        // Offsets from include/uapi/linux/tcp.h.
        assert_eq!(std::mem::offset_of!(TcpInfo, pacing_to_bytes_received), 104);
        assert_eq!(std::mem::offset_of!(TcpInfo, segs), 136);
        assert_eq!(std::mem::offset_of!(TcpInfo, delivery_to_sndbuf_limited), 160);
        assert_eq!(std::mem::offset_of!(TcpInfo, delivered), 192);
        assert_eq!(std::mem::offset_of!(TcpInfo, snd_wnd), 228);
        assert_eq!(size_of::<TcpInfo>(), 232);
    }

    #[test]
    fn a_reader_that_does_not_read_closes_its_window() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut writer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_reader, _) = listener.accept().unwrap();
        assert_eq!(progress(&writer).unwrap().window, Window::Open);
        assert_eq!(unsent(&writer).unwrap(), 0);
        writer.set_nonblocking(true).unwrap();
        let chunk = vec![0; 65_536];
        while writer.write(&chunk).is_ok() {}
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while progress(&writer).unwrap().window != Window::Closed {
            assert!(tokio::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        assert!(unsent(&writer).unwrap() > 0);
    }
}
