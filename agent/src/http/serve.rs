//! The server itself: its threads, its port, its connections and their limits. Started and closed
//! by the loop.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net as unix;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use super::tls::Tls;
use super::{Access, App, Source, router, url};

/// Connections at once; more wait in the kernel.
const CONNECTIONS_MAX: usize = 256;
/// A head that takes longer comes from nobody who wants an answer.
const HEAD_MAX: Duration = Duration::from_secs(10);
const HEAD_BYTES_MAX: usize = 32 << 10;
const HEADERS_MAX: usize = 64;
/// A reader that takes nothing is given up after this.
const PEER_MAX: Duration = Duration::from_secs(30);
/// Ports tried after one that is taken.
const PORTS_MAX: u16 = 16;

/// Where the server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    /// A socket in the file system, for this user only.
    Unix(PathBuf),
}

impl Listen {
    /// Whether nobody beyond this machine can reach it.
    pub fn is_private(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What the server is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `None`: it is not started.
    pub listen: Option<Listen>,
    /// `None`: what is sent can be read on the way.
    pub tls: Option<Tls>,
    pub access: Access,
    /// Whether metrics are shown without a token.
    pub metrics_open: bool,
    /// Whether GPUs are shown under the names of NVIDIA's exporter as well.
    pub dcgm_names: bool,
}

/// A server at work.
pub struct Server {
    runtime: Option<Runtime>,
    listen: Listen,
    tls: bool,
    close: watch::Sender<bool>,
    connections: Arc<Semaphore>,
}

/// A port or a path that is ours.
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Server {
    /// Starts serving. A port that is taken is passed over for one of the next.
    ///
    /// # Errors
    /// One line on why nothing is served.
    pub fn start(settings: &Settings, source: Source) -> Result<Option<Self>, String> {
        let Some(listen) = settings.listen.clone() else {
            return Ok(None);
        };
        let access = &settings.access;
        if !access.may_listen(&listen) {
            return Err(format!(
                "{listen} is reached from elsewhere and there is no token\n\
                 hint: set AGENT_TOKEN, or listen on 127.0.0.1"
            ));
        }
        let app = Arc::new(App::new(source, settings));
        let name = listen.to_string();
        Self::serve(listen, settings.tls.clone(), router(app), "http")
            .map(Some)
            .map_err(|error| format!("{name}: {error}"))
    }

    /// Serves a router on threads of its own.
    ///
    /// # Errors
    /// If no port is free or the threads cannot be made.
    pub(crate) fn serve(
        listen: Listen,
        tls: Option<Tls>,
        router: Router,
        name: &str,
    ) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(8)
            .thread_name(name)
            .enable_all()
            .build()?;
        let inside = runtime.enter();
        let bound = bind(listen);
        drop(inside);
        let (socket, listen) = match bound {
            Ok(bound) => bound,
            Err(error) => {
                // The caller may be on a thread of another runtime, which must not wait.
                runtime.shutdown_background();
                return Err(error);
            }
        };
        let (close, closing) = watch::channel(false);
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let with_tls = tls.is_some();
        let listening = Listening {
            socket,
            tls,
            router,
            closing,
            connections: Arc::clone(&connections),
        };
        runtime.spawn(listening.accept());
        Ok(Self {
            runtime: Some(runtime),
            listen,
            tls: with_tls,
            close,
            connections,
        })
    }

    /// Where it listens.
    pub fn listen(&self) -> &Listen {
        &self.listen
    }

    pub fn url(&self) -> String {
        match &self.listen {
            Listen::Tcp(address) => url(*address, self.tls),
            listen => listen.to_string(),
        }
    }

    /// Lets answers that are being given end, for as long as this, and no longer.
    pub async fn close(self, limit: Duration) {
        self.close.send_replace(true);
        let all = u32::try_from(CONNECTIONS_MAX).expect("a few hundred");
        timeout(limit, self.connections.acquire_many(all))
            .await
            .ok();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        if let Listen::Unix(path) = &self.listen {
            // One that stays is taken by the next server.
            std::fs::remove_file(path).ok();
        }
    }
}

/// The address, or one with a port behind it. Within a runtime.
fn bind(listen: Listen) -> io::Result<(Socket, Listen)> {
    let mut address = match listen {
        Listen::Tcp(address) => address,
        Listen::Unix(path) => {
            let socket = Socket::Unix(UnixListener::from_std(bind_path(&path)?)?);
            return Ok((socket, Listen::Unix(path)));
        }
    };
    for _ in 0..PORTS_MAX {
        match std::net::TcpListener::bind(address) {
            Ok(listener) => {
                listener.set_nonblocking(true)?;
                let address = listener.local_addr()?;
                let socket = Socket::Tcp(TcpListener::from_std(listener)?);
                return Ok((socket, Listen::Tcp(address)));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                address.set_port(address.port().wrapping_add(1).max(1024));
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// A socket at this path, in place of one that nobody listens at any more.
fn bind_path(path: &Path) -> io::Result<unix::UnixListener> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_socket());
    if is_socket && unix::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    let listener = unix::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A socket and who answers there.
struct Listening {
    socket: Socket,
    tls: Option<Tls>,
    router: Router,
    closing: watch::Receiver<bool>,
    connections: Arc<Semaphore>,
}

impl Listening {
    async fn accept(self) {
        let mut closing = self.closing.clone();
        loop {
            let Ok(permit) = Arc::clone(&self.connections).acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                accepted = self.next(permit) => accepted,
                () = closed(&mut closing) => return,
            };
            if accepted.is_err() {
                // Too many open files, say: again in a moment.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// Takes one connection and leaves it to a task.
    async fn next(&self, permit: OwnedSemaphorePermit) -> io::Result<()> {
        let (router, closing) = (self.router.clone(), self.closing.clone());
        match &self.socket {
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                tokio::spawn(talk(stream, router, closing, permit));
            }
            Socket::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true).ok();
                limit_silence(&stream);
                match self.tls.clone() {
                    None => tokio::spawn(talk(stream, router, closing, permit)),
                    Some(tls) => tokio::spawn(async move {
                        // As long as a head may take, and one of the connections meanwhile.
                        if let Ok(Ok(stream)) = timeout(HEAD_MAX, tls.accept(stream)).await {
                            talk(stream, router, closing, permit).await;
                        }
                    }),
                };
            }
        }
        Ok(())
    }
}

async fn closed(closing: &mut watch::Receiver<bool>) {
    // A sender that is gone says the same.
    closing.wait_for(|&closing| closing).await.ok();
}

/// A peer that does not take what was sent is cut off by the kernel, a stopped one too.
fn limit_silence(stream: &TcpStream) {
    let limit_ms = u32::try_from(PEER_MAX.as_millis()).expect("half a minute");
    rustix::net::sockopt::set_tcp_user_timeout(stream, limit_ms).ok();
}

/// One connection, to its end.
async fn talk<S>(
    stream: S,
    router: Router,
    mut closing: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    tokio::select! {
        // What goes wrong between two machines is of no interest here.
        _ended = connection.as_mut() => {}
        () = closed(&mut closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await.ok();
        }
    }
}
