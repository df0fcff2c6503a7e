//! An S3 server in this process, with faults on order: s3s-fs behind a hook in its HTTP service.
//! Called by tests.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use aws_sdk_s3::config::Credentials;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Sleep;

use super::super::crc64::crc64nvme;
use super::{S3, Settings, encode_crc};

pub(crate) const ACCESS_KEY: &str = "ACCESSKEYOFTHETEST";
pub(crate) const SECRET_KEY: &str = "secret-key-of-the-test";
pub(crate) const BUCKET: &str = "bucket";

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection is closed before anything is done.
    Drop,
    /// It is done, and the connection closed instead of an answer.
    LoseAnswer,
    /// It is done, and answered with this status and code.
    DoneBut(u16, &'static str),
    /// It is answered with this status and code, and not done.
    Answer(u16, &'static str),
    /// The connection is closed after so many bytes of the answer's body.
    CutBody(usize),
    /// The answer's body comes so much later than its head.
    StallBody(Duration),
    /// Never answered.
    Hang,
}

/// A server on loopback with one empty bucket; it ends when this is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    hook: Arc<Hook>,
    task: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

struct Hook {
    checks_signatures: bool,
    service: S3Service,
    /// Method, a text in path and query, and what happens to the next such request.
    faults: Mutex<Vec<(&'static str, &'static str, Fault)>>,
    /// Method, path and query of every request.
    requests: Mutex<Vec<String>>,
    /// s3s-fs looks, then writes: one writer at a time makes its conditions atomic.
    writer: tokio::sync::Mutex<()>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(true).await
    }

    /// One that takes any request, whoever signed it.
    pub(crate) async fn start_open() -> Self {
        Self::start_with(false).await
    }

    async fn start_with(checks_signatures: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let files = s3s_fs::FileSystem::new(folder.path()).unwrap();
        let mut builder = S3ServiceBuilder::new(files);
        if checks_signatures {
            builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        }
        let hook = Arc::new(Hook {
            checks_signatures,
            service: builder.build(),
            faults: Mutex::default(),
            requests: Mutex::default(),
            writer: tokio::sync::Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::clone(&hook);
        let task = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let hook = Arc::clone(&shared);
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(|r| Arc::clone(&hook).serve(r));
                    let http = hyper::server::conn::http1::Builder::new();
                    // An error is a client that left, or a fault that closes the connection.
                    http.serve_connection(TokioIo::new(connection), service)
                        .await
                });
            }
        });
        Self {
            address,
            hook,
            task,
            _folder: folder,
        }
    }

    pub(crate) fn settings(&self) -> Settings {
        let credentials = Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "test");
        Settings {
            endpoint: Some(format!("http://{}", self.address)),
            region: Some("us-east-1".to_owned()),
            credentials: Some(credentials),
            path_style: None,
        }
    }

    pub(crate) async fn store(&self) -> S3 {
        S3::open(BUCKET, "some/prefix", self.settings())
            .await
            .unwrap()
    }

    /// The next request with this method and this text in its path or query has this fault; each
    /// order is for one request.
    pub(crate) fn next(&self, method: &'static str, text: &'static str, fault: Fault) {
        self.hook.faults.lock().unwrap().push((method, text, fault));
    }

    /// Orders that no request has met yet.
    pub(crate) fn pending(&self) -> usize {
        self.hook.faults.lock().unwrap().len()
    }

    /// How many requests with this method and this text in path or query there were.
    pub(crate) fn count(&self, method: &str, text: &str) -> usize {
        let requests = self.hook.requests.lock().unwrap();
        let seen = requests.iter();
        seen.filter(|r| r.starts_with(method) && r.contains(text))
            .count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hook {
    async fn serve(self: Arc<Self>, request: Request<Incoming>) -> Result<Answer, BoxError> {
        let line = format!("{} {}", request.method(), request.uri());
        let fault = {
            let mut faults = self.faults.lock().unwrap();
            let found = faults
                .iter()
                .position(|(method, text, _)| line.starts_with(method) && line.contains(text));
            found.map(|i| faults.remove(i).2)
        };
        self.requests.lock().unwrap().push(line.clone());
        match fault {
            Some(Fault::Drop) => return Err("dropped".into()),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Answer(status, code)) => {
                // A client that is still sending would not read the answer.
                request.into_body().collect().await?;
                return Ok(error(status, code));
            }
            _ => {}
        }
        let answer = self.handle(&line, request).await?;
        Ok(match fault {
            Some(Fault::LoseAnswer) => return Err("dropped".into()),
            Some(Fault::DoneBut(status, code)) => error(status, code),
            Some(Fault::CutBody(bytes)) => answer.map(|body| slow(body, Some(bytes), None)),
            Some(Fault::StallBody(stall)) => answer.map(|body| slow(body, None, Some(stall))),
            _ => answer,
        })
    }

    async fn handle(&self, line: &str, request: Request<Incoming>) -> Result<Answer, BoxError> {
        let part = line.contains("partNumber=");
        let writes = !line.starts_with("GET ") && !line.starts_with("HEAD ");
        let (mut head, body) = request.into_parts();
        if !self.checks_signatures {
            head.headers.remove(hyper::header::AUTHORIZATION);
        }
        let body = body.collect().await?.to_bytes();
        // s3s-fs does not look at a part's checksum; S3 does.
        let sent = head.headers.get("x-amz-checksum-crc64nvme");
        let expected = encode_crc(crc64nvme(&body));
        if part && sent.is_some_and(|sent| sent != expected.as_str()) {
            return Ok(error(400, "BadDigest"));
        }
        let _one = match writes && !part {
            true => Some(self.writer.lock().await),
            false => None,
        };
        let answer = self
            .service
            .call(Request::from_parts(head, body.into()))
            .await;
        let answer = answer.map_err(|e| format!("{e:?}"))?;
        // Of an upload that it does not know, s3s-fs says that access is denied.
        if line.contains("uploadId=") && answer.status() == 403 {
            return Ok(error(404, "NoSuchUpload"));
        }
        Ok(answer.map(UnsyncBoxBody::new))
    }
}

fn error(status: u16, code: &str) -> Answer {
    let text = format!("<Error><Code>{code}</Code><Message>as ordered</Message></Error>");
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
    let answer = Response::builder().status(status);
    answer.body(UnsyncBoxBody::new(body)).unwrap()
}

/// A body that is cut, or comes late.
struct Slow {
    body: UnsyncBoxBody<Bytes, BoxError>,
    left: Option<usize>,
    stall: Option<Pin<Box<Sleep>>>,
}

fn slow(
    body: UnsyncBoxBody<Bytes, BoxError>,
    left: Option<usize>,
    stall: Option<Duration>,
) -> UnsyncBoxBody<Bytes, BoxError> {
    let stall = stall.map(|stall| Box::pin(tokio::time::sleep(stall)));
    UnsyncBoxBody::new(Slow { body, left, stall })
}

impl Body for Slow {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(stall) = &mut self.stall {
            ready!(stall.as_mut().poll(context));
            self.stall = None;
        }
        if self.left == Some(0) {
            return Poll::Ready(Some(Err("cut".into())));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let Some(left) = self.left else {
            return Poll::Ready(frame);
        };
        let Some(Ok(data)) = frame.map(|frame| frame.map(Frame::into_data)) else {
            return Poll::Ready(Some(Err("cut".into())));
        };
        let data = data.unwrap_or_default();
        let data = data.slice(..left.min(data.len()));
        self.left = Some(left - data.len());
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}
