//! The server itself: its threads, its port, its connections and their limits. Started and closed
//! by the loop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

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

/// What the server is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `None`: it is not started.
    pub listen: Option<SocketAddr>,
    pub access: Access,
    /// Whether metrics are shown without a token.
    pub metrics_open: bool,
}

/// A server at work.
pub struct Server {
    runtime: Option<Runtime>,
    address: SocketAddr,
    close: watch::Sender<bool>,
    connections: Arc<Semaphore>,
}

impl Server {
    /// Starts serving. A port that is taken is passed over for one of the next.
    ///
    /// # Errors
    /// One line on why nothing is served.
    pub fn start(settings: &Settings, source: Source) -> Result<Option<Self>, String> {
        let Some(listen) = settings.listen else {
            return Ok(None);
        };
        let access = &settings.access;
        if !access.may_listen(&listen) {
            return Err(format!(
                "{listen} is reached from elsewhere and there is no token\n\
                 hint: set AGENT_TOKEN, or listen on 127.0.0.1"
            ));
        }
        let app = Arc::new(App::new(source, access.clone(), settings.metrics_open));
        Self::serve(listen, router(app), "http")
            .map(Some)
            .map_err(|error| format!("{listen}: {error}"))
    }

    /// Serves a router on threads of its own.
    ///
    /// # Errors
    /// If no port is free or the threads cannot be made.
    pub(crate) fn serve(listen: SocketAddr, router: Router, name: &str) -> io::Result<Self> {
        let listener = bind(listen)?;
        let address = listener.local_addr()?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(8)
            .thread_name(name)
            .enable_all()
            .build()?;
        let inside = runtime.enter();
        let listener = TcpListener::from_std(listener);
        drop(inside);
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => {
                // The caller may be on a thread of another runtime, which must not wait.
                runtime.shutdown_background();
                return Err(error);
            }
        };
        let (close, closing) = watch::channel(false);
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        runtime.spawn(accept(listener, router, closing, Arc::clone(&connections)));
        Ok(Self {
            runtime: Some(runtime),
            address,
            close,
            connections,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        url(self.address, false)
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
    }
}

/// The address, or one with a port behind it.
fn bind(listen: SocketAddr) -> io::Result<std::net::TcpListener> {
    let mut address = listen;
    for _ in 0..PORTS_MAX {
        match std::net::TcpListener::bind(address) {
            Ok(listener) => {
                listener.set_nonblocking(true)?;
                return Ok(listener);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                address.set_port(address.port().wrapping_add(1).max(1024));
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

async fn accept(
    listener: TcpListener,
    router: Router,
    mut closing: watch::Receiver<bool>,
    connections: Arc<Semaphore>,
) {
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closed(&mut closing) => return,
        };
        match accepted {
            Ok((stream, _)) => {
                stream.set_nodelay(true).ok();
                limit_silence(&stream);
                tokio::spawn(talk(stream, router.clone(), closing.clone(), permit));
            }
            // Too many open files, say: again in a moment.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
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
