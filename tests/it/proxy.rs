//! A proxy between an agent and its store that does to the traffic what networks and servers do.
//! Called by the tests of the agent on S3.
//!
//! Requests go on as they came, the signed `Host` included, so the store cannot tell. What shall
//! happen to a request is asked of a rule that the test gives.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep};

use crate::bucket::{Answer, BoxError, Bucket, error_answer, runtime, serve};

/// What is passed on at once where a link is slow.
const PIECE_BYTES: usize = 64 << 10;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    Pass,
    /// Answered with this status and code, and not passed on.
    Refuse(u16, &'static str),
    /// The connection is closed in the middle of the request's body.
    CutRequest,
    /// The connection is closed in the middle of the answer's body.
    CutAnswer,
    /// Passed on; the connection is closed instead of an answer.
    LoseAnswer,
    /// Taken, and never answered.
    Swallow,
}

/// A request as a rule sees it.
pub(crate) struct Asked {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    /// It shall be done only if nothing is there.
    pub(crate) creates: bool,
    pub(crate) bytes: u64,
    /// Part of an object is asked for.
    pub(crate) ranged: bool,
    /// The session that its keys are of.
    pub(crate) session: Option<String>,
}

type Rule = Box<dyn FnMut(&Asked) -> Fate + Send>;

/// A proxy on loopback, for as long as the tests run.
pub(crate) struct Proxy {
    address: SocketAddr,
    down: watch::Sender<bool>,
    way: Arc<Way>,
}

struct Way {
    to: SocketAddr,
    rule: Mutex<Option<Rule>>,
    /// How many requests met each fate.
    met: Mutex<BTreeMap<Fate, usize>>,
    /// Of a slow link, each direction of each request by itself.
    bytes_per_s: Mutex<Option<usize>>,
}

impl Proxy {
    pub(crate) fn to(bucket: &Bucket) -> Self {
        let listener = runtime().block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = listener.unwrap();
        let address = listener.local_addr().unwrap();
        let way = Arc::new(Way {
            to: bucket.address,
            rule: Mutex::default(),
            met: Mutex::default(),
            bytes_per_s: Mutex::default(),
        });
        let (down, is_down) = watch::channel(false);
        runtime().spawn(listen(listener, address, Arc::clone(&way), is_down));
        Self { address, down, way }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// While it is down, connections are refused, and those there are get closed.
    pub(crate) fn set_down(&self, down: bool) {
        self.down.send_replace(down);
    }

    pub(crate) fn set_rule(&self, rule: impl FnMut(&Asked) -> Fate + Send + 'static) {
        *self.way.rule.lock().unwrap() = Some(Box::new(rule));
    }

    pub(crate) fn clear_rule(&self) {
        *self.way.rule.lock().unwrap() = None;
    }

    pub(crate) fn set_speed(&self, bytes_per_s: usize) {
        *self.way.bytes_per_s.lock().unwrap() = Some(bytes_per_s);
    }

    /// How many requests met this fate so far.
    pub(crate) fn met(&self, fate: Fate) -> usize {
        self.way
            .met
            .lock()
            .unwrap()
            .get(&fate)
            .copied()
            .unwrap_or(0)
    }
}

/// Takes connections while the proxy is not down.
async fn listen(
    listener: TcpListener,
    address: SocketAddr,
    way: Arc<Way>,
    mut is_down: watch::Receiver<bool>,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        if *is_down.borrow_and_update() {
            listener = None;
            connections.shutdown().await;
            if is_down.changed().await.is_err() {
                return;
            }
            continue;
        }
        if listener.is_none() {
            // Its number may still be in use by a connection that is being closed.
            listener = TcpListener::bind(address).await.ok();
        }
        let Some(open) = &listener else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        tokio::select! {
            changed = is_down.changed() => if changed.is_err() { return },
            Some(_) = connections.join_next() => {}
            Ok((connection, _)) = open.accept() => {
                let way = Arc::clone(&way);
                connections.spawn(serve(connection, move |request| {
                    Arc::clone(&way).pass(request)
                }));
            }
        }
    }
}

impl Way {
    async fn pass(self: Arc<Self>, request: Request<Incoming>) -> Result<Answer, BoxError> {
        let fate = self.fate(&request);
        match fate {
            Fate::Swallow => std::future::pending().await,
            Fate::CutRequest => {
                let mut body = request.into_body();
                let half = body.size_hint().lower() / 2;
                let mut read = 0;
                while let (true, Some(frame)) = (read < half, body.frame().await) {
                    read += frame?.data_ref().map_or(0, Bytes::len) as u64;
                }
                return Err("cut in the middle of the request".into());
            }
            _ => {}
        }
        let (head, body) = request.into_parts();
        let body = self.receive(body).await?;
        if let Fate::Refuse(status, code) = fate {
            return Ok(error_answer(status, code));
        }
        let (head, body) = self
            .forward(Request::from_parts(head, Full::new(body)))
            .await?;
        if fate == Fate::LoseAnswer {
            return Err("the answer is lost".into());
        }
        let paced = Paced {
            left: match fate {
                Fate::CutAnswer => body.len() / 2,
                _ => body.len(),
            },
            body,
            bytes_per_s: *self.bytes_per_s.lock().unwrap(),
            pause: None,
        };
        Ok(Response::from_parts(head, UnsyncBoxBody::new(paced)))
    }

    fn fate(&self, request: &Request<Incoming>) -> Fate {
        let headers = request.headers();
        let asked = Asked {
            method: request.method().to_string(),
            path: request.uri().to_string(),
            creates: headers.contains_key("if-none-match"),
            bytes: request.body().size_hint().lower(),
            ranged: headers.contains_key("range"),
            session: headers
                .get("x-amz-security-token")
                .map(|token| String::from_utf8_lossy(token.as_bytes()).into_owned()),
        };
        let fate = match &mut *self.rule.lock().unwrap() {
            Some(rule) => rule(&asked),
            None => Fate::Pass,
        };
        *self.met.lock().unwrap().entry(fate).or_default() += 1;
        fate
    }

    /// All of a request's body, no faster than the link is.
    async fn receive(&self, mut body: Incoming) -> Result<Bytes, BoxError> {
        let speed = *self.bytes_per_s.lock().unwrap();
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            bytes.extend_from_slice(&data);
            if let Some(speed) = speed {
                sleep(Duration::from_secs_f64(data.len() as f64 / speed as f64)).await;
            }
        }
        Ok(bytes.into())
    }

    async fn forward(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(hyper::http::response::Parts, Bytes), BoxError> {
        let connection = TcpStream::connect(self.to).await?;
        let (mut store, driver) =
            hyper::client::conn::http1::handshake(TokioIo::new(connection)).await?;
        tokio::spawn(driver);
        let (head, body) = store.send_request(request).await?.into_parts();
        Ok((head, body.collect().await?.to_bytes()))
    }
}

/// A body that may come slowly and may be cut.
struct Paced {
    body: Bytes,
    /// Of `body`, before the connection is closed.
    left: usize,
    bytes_per_s: Option<usize>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Body for Paced {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
        let bytes = PIECE_BYTES.min(self.left);
        if bytes == 0 {
            let cut = !self.body.is_empty();
            return Poll::Ready(cut.then(|| Err("cut in the middle of the answer".into())));
        }
        self.left -= bytes;
        if let Some(speed) = self.bytes_per_s {
            let time = Duration::from_secs_f64(bytes as f64 / speed as f64);
            self.pause = Some(Box::pin(sleep(time)));
        }
        Poll::Ready(Some(Ok(Frame::data(self.body.split_to(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.body.len() as u64)
    }
}
