//! Asks a running proxy over HTTP, by TCP or a unix socket: one request, one connection, one deadline.

use std::{fmt, io, path::PathBuf, str::FromStr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{HOST, HeaderName},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

/// The largest answer that is read, in bytes: ten thousand endpoints and more.
const ANSWER: usize = 16 * 1024 * 1024;

/// Whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A host name or IP address, and a port.
    Tcp(String),
    /// A unix socket.
    Unix(PathBuf),
}

/// Not the form of a [`Target`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an address: give HOST:PORT or unix:PATH")]
pub struct NotATarget;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens there, or the way is closed.
    #[error("cannot reach {target}: {source}")]
    Unreachable {
        /// Who was asked.
        target: Target,
        /// What the kernel said.
        source: io::Error,
    },
    /// Nothing came in time.
    #[error("no answer from {target} within {} s", .limit.as_secs_f64())]
    Silent {
        /// Who was asked.
        target: Target,
        /// The time it had.
        limit: Duration,
    },
    /// What came is not HTTP, or broke off.
    #[error("{target} did not answer in HTTP: {reason}")]
    NotHttp {
        /// Who was asked.
        target: Target,
        /// What is wrong with it.
        reason: String,
    },
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The body.
    pub body: Bytes,
}

impl FromStr for Target {
    type Err = NotATarget;

    fn from_str(text: &str) -> Result<Self, NotATarget> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(NotATarget) } else { Ok(Self::Unix(path.into())) };
        }
        let (host, port) = text.rsplit_once(':').ok_or(NotATarget)?;
        // An IPv6 address needs its brackets, or its end would be taken for a port.
        let bare = !host.starts_with('[') && host.contains(':');
        if host.is_empty() || bare || host.contains('/') || port.parse::<u16>().is_err() {
            return Err(NotATarget);
        }
        Ok(Self::Tcp(text.to_owned()))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl AskError {
    /// True when nobody is there; false when somebody is who does not speak our language.
    #[must_use]
    pub const fn is_unreachable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Silent { .. } => true,
            Self::NotHttp { .. } => false,
        }
    }
}

impl Answer {
    /// The body as text, for an answer that is not the one wished for: the error of a JSON body, or its first line.
    #[must_use]
    pub fn complaint(&self) -> String {
        match serde_json::from_slice::<crate::api::Problem>(&self.body) {
            Ok(problem) => problem.error,
            Err(_) => String::from_utf8_lossy(&self.body).lines().next().unwrap_or_default().to_owned(),
        }
    }
}

/// An answer that goes on. Dropping it closes the connection.
#[derive(Debug)]
pub struct Stream {
    target: Target,
    body: Incoming,
    _connection: AbortOnDropHandle<()>,
}

impl Stream {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// It breaks off, or stays silent for longer than `limit`.
    pub async fn next(&mut self, limit: Duration) -> Result<Option<Bytes>, AskError> {
        loop {
            let silent = |_| AskError::Silent { target: self.target.clone(), limit };
            let frame = timeout(limit, self.body.frame()).await.map_err(silent)?;
            match frame.transpose().map_err(|error| not_http(&self.target, &error))? {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }
}

/// Gets `path` with these header fields, and keeps the answer open. An answer other than 200 is read, all within `limit`.
///
/// # Errors
/// See [`AskError`].
pub async fn follow(
    target: &Target,
    path: &str,
    fields: &[(HeaderName, String)],
    limit: Duration,
) -> Result<Result<Stream, Answer>, AskError> {
    let asked = async {
        let unreachable = |source| AskError::Unreachable { target: target.clone(), source };
        match target {
            Target::Tcp(address) => {
                let stream = TcpStream::connect(address).await.map_err(unreachable)?;
                begin(target, stream, request(target, address, (Method::GET, path), fields)?).await
            }
            Target::Unix(file) => {
                let stream = UnixStream::connect(file).await.map_err(unreachable)?;
                begin(target, stream, request(target, "localhost", (Method::GET, path), fields)?).await
            }
        }
    };
    match timeout(limit, asked).await {
        Ok(result) => result,
        Err(_) => Err(AskError::Silent { target: target.clone(), limit }),
    }
}

async fn begin<S>(
    target: &Target,
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<Result<Stream, Answer>, AskError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let not_http = |error: hyper::Error| not_http(target, &error);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(not_http)?;
    // Its own result says nothing that the body does not say.
    let driven = AbortOnDropHandle::new(tokio::spawn(async { drop(connection.await) }));
    let response = sender.send_request(request).await.map_err(not_http)?;
    let status = response.status();
    if status == StatusCode::OK {
        return Ok(Ok(Stream { target: target.clone(), body: response.into_body(), _connection: driven }));
    }
    Ok(Err(Answer { status, body: whole(target, response).await? }))
}

/// Gets `path`, all within `limit`.
///
/// # Errors
/// See [`AskError`].
pub async fn get(target: &Target, path: &str, limit: Duration) -> Result<Answer, AskError> {
    ask(target, Method::GET, path, limit).await
}

/// Makes a request without a body, all within `limit`.
///
/// # Errors
/// See [`AskError`].
pub async fn ask(target: &Target, method: Method, path: &str, limit: Duration) -> Result<Answer, AskError> {
    let asked = async {
        let unreachable = |source| AskError::Unreachable { target: target.clone(), source };
        match target {
            Target::Tcp(address) => {
                let stream = TcpStream::connect(address).await.map_err(unreachable)?;
                exchange(target, stream, address, (method, path)).await
            }
            Target::Unix(file) => {
                let stream = UnixStream::connect(file).await.map_err(unreachable)?;
                exchange(target, stream, "localhost", (method, path)).await
            }
        }
    };
    match timeout(limit, asked).await {
        Ok(result) => result,
        Err(_) => Err(AskError::Silent { target: target.clone(), limit }),
    }
}

async fn exchange<S>(
    target: &Target,
    stream: S,
    host: &str,
    (method, path): (Method, &str),
) -> Result<Answer, AskError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let not_http = |error: hyper::Error| not_http(target, &error);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(not_http)?;
    let request = request(target, host, (method, path), &[])?;
    let conversation = async {
        let response = sender.send_request(request).await.map_err(not_http)?;
        Ok(Answer { status: response.status(), body: whole(target, response).await? })
    };
    // The connection has to be driven beside the conversation. Its own result says nothing that the conversation, which
    // then ends too, does not say.
    let driven = async {
        drop(connection.await);
        std::future::pending().await
    };
    tokio::select! {
        biased;
        answer = conversation => answer,
        never = driven => match never {},
    }
}

fn request(
    target: &Target,
    host: &str,
    (method, path): (Method, &str),
    fields: &[(HeaderName, String)],
) -> Result<Request<Empty<Bytes>>, AskError> {
    let mut request = Request::builder().method(method).uri(path).header(HOST, host);
    for (name, value) in fields {
        request = request.header(name, value);
    }
    request.body(Empty::new()).map_err(|error| not_http(target, &error))
}

/// The body of an answer.
async fn whole(target: &Target, response: Response<Incoming>) -> Result<Bytes, AskError> {
    let body = Limited::new(response.into_body(), ANSWER).collect().await;
    Ok(body.map_err(|error| not_http(target, &error))?.to_bytes())
}

fn not_http(target: &Target, error: &dyn fmt::Display) -> AskError {
    AskError::NotHttp { target: target.clone(), reason: error.to_string() }
}

#[cfg(test)]
pub(super) mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        task::JoinHandle,
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A server that gives this answer once, and returns what it was asked.
    pub(in crate::cli) async fn server(answer: impl Into<Vec<u8>>) -> (Target, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (target, answer) = (Target::Tcp(listener.local_addr().unwrap().to_string()), answer.into());
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(&answer).await.unwrap();
            stream.shutdown().await.unwrap();
            String::from_utf8(asked).unwrap()
        });
        (target, task)
    }

    /// An address that refuses while the socket is kept: bound, so that nobody else gets the port, and not listening.
    pub(in crate::cli) fn nobody() -> (Target, socket2::Socket) {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (Target::Tcp(address.to_string()), socket)
    }

    #[test]
    fn a_target_is_a_host_with_a_port_or_a_unix_socket() {
        for good in ["127.0.0.1:9797", "[::1]:9797", "localhost:1", "unix:/run/twinspan.sock"] {
            assert_eq!(good.parse::<Target>().unwrap().to_string(), good);
        }
        for bad in ["", "localhost", ":9797", "::1:9797", "host:port", "host:70000", "http://host:1", "unix:"]
        {
            assert_eq!(bad.parse::<Target>(), Err(NotATarget), "{bad}");
        }
    }

    #[tokio::test]
    async fn an_answer_has_its_status_and_its_body() {
        let (target, asked) = server("HTTP/1.1 503 no\r\nContent-Length: 4\r\n\r\nbusy").await;
        let answer = get(&target, "/readyz?verbose", PATIENCE).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.complaint().as_str()), (503, "busy"));
        let asked = asked.await.unwrap().to_ascii_lowercase();
        assert!(asked.starts_with("get /readyz?verbose http/1.1\r\n"), "{asked}");
        assert!(asked.contains(&format!("host: {target}\r\n")), "{asked}");
    }

    #[tokio::test]
    async fn what_is_not_http_is_told_from_nobody() {
        let (target, _asked) = server("SSH-2.0-OpenSSH_9.2\r\n").await;
        let error = get(&target, "/", PATIENCE).await.unwrap_err();
        assert!(!error.is_unreachable() && error.to_string().contains("did not answer in HTTP"), "{error}");
        let (target, _asked) = server("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
        assert!(!get(&target, "/", PATIENCE).await.unwrap_err().is_unreachable(), "broke off");

        let (target, _socket) = nobody();
        let error = get(&target, "/", PATIENCE).await.unwrap_err();
        assert!(error.is_unreachable());
        assert!(
            error.to_string().starts_with(&format!("cannot reach {target}: Connection refused")),
            "{error}"
        );
        let missing = Target::Unix("/nonexistent/twinspan.sock".into());
        assert!(get(&missing, "/", PATIENCE).await.unwrap_err().is_unreachable());
    }

    #[tokio::test]
    async fn silence_ends_at_the_limit() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::Tcp(listener.local_addr().unwrap().to_string());
        let error = get(&target, "/", Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(error.to_string(), format!("no answer from {target} within 0.05 s"));
        assert!(error.is_unreachable());
    }

    #[tokio::test]
    async fn a_unix_socket_is_asked_like_a_port() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        });
        let answer = get(&Target::Unix(path), "/livez", PATIENCE).await.unwrap();
        assert_eq!(&answer.body[..], b"ok");
        served.await.unwrap();
    }

    #[tokio::test]
    async fn a_stream_over_a_unix_socket_goes_on_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nfirst").await.unwrap();
            // Not before the first piece was read.
            stream.read_u8().await.unwrap_err();
            String::from_utf8(asked).unwrap()
        });
        let fields = [(HeaderName::from_static("last-event-id"), "7-1".to_owned())];
        let target = Target::Unix(path);
        let mut stream = follow(&target, "/events", &fields, PATIENCE).await.unwrap().unwrap();
        assert_eq!(stream.next(PATIENCE).await.unwrap().unwrap(), "first");
        let silent = stream.next(Duration::from_millis(20)).await.unwrap_err();
        assert!(silent.is_unreachable(), "{silent}");
        drop(stream);
        assert!(served.await.unwrap().contains("last-event-id: 7-1\r\n"), "the connection is closed");
    }
}
