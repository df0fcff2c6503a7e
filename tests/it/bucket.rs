//! A bucket for a test: in an S3 server in this process, or on a real server that the environment
//! names (`tests/servers/` start some and say so). Called by the tests of the agent on S3.
//!
//! What a test reads or damages it reads and damages behind the agent's back: the server's files,
//! or requests by curl.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// The job that every test runs.
pub(crate) const JOB: &str = "j";

/// Where servers and proxies of all tests run.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().build().unwrap()
    })
}

/// A place in a bucket that is this test's alone.
pub(crate) struct Bucket {
    pub(crate) address: SocketAddr,
    pub(crate) name: String,
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
    prefix: String,
    /// Where the server in this process keeps its buckets.
    files: Option<TempDir>,
}

impl Bucket {
    pub(crate) fn new() -> Self {
        match std::env::var("ANNEAL_TEST_S3") {
            Ok(location) => Self::of_real_server(&location),
            Err(_) => Self::in_process(true),
        }
    }

    /// In a server that takes every conditional request for an unconditional one.
    pub(crate) fn without_conditions() -> Self {
        Self::in_process(false)
    }

    fn of_real_server(location: &str) -> Self {
        let variable = |name: &str| std::env::var(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (name, prefix) = location
            .strip_prefix("s3://")
            .and_then(|rest| rest.split_once('/'))
            .expect("ANNEAL_TEST_S3 is s3://bucket/prefix");
        let endpoint = variable("AWS_ENDPOINT_URL");
        let address = endpoint
            .strip_prefix("http://")
            .and_then(|a| a.parse().ok());
        Self {
            address: address.expect("AWS_ENDPOINT_URL is http://address:port"),
            name: name.to_owned(),
            access_key: variable("AWS_ACCESS_KEY_ID"),
            secret_key: variable("AWS_SECRET_ACCESS_KEY"),
            prefix: format!("{prefix}/e2e-{:016x}", fastrand::u64(..)),
            files: None,
        }
    }

    fn in_process(conditions: bool) -> Self {
        let (name, access_key, secret_key) = ("bucket", "ACCESSKEYOFTHETEST", "the-test's-secret");
        let files = tempfile::tempdir().unwrap();
        fs::create_dir(files.path().join(name)).unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(files.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(access_key, secret_key));
        let server = Arc::new(Server {
            service: builder.build(),
            writer: tokio::sync::Mutex::default(),
            conditions,
            root: files.path().to_owned(),
        });
        let listener = runtime().block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = listener.unwrap();
        let address = listener.local_addr().unwrap();
        runtime().spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let server = Arc::clone(&server);
                tokio::spawn(serve(connection, move |request| {
                    Arc::clone(&server).answer(request)
                }));
            }
        });
        Self {
            address,
            name: name.to_owned(),
            access_key: access_key.to_owned(),
            secret_key: secret_key.to_owned(),
            prefix: "some/prefix".to_owned(),
            files: Some(files),
        }
    }

    /// As the agent takes it.
    pub(crate) fn location(&self) -> String {
        format!("s3://{}/{}", self.name, self.prefix)
    }

    /// Keys of the job's objects, in order, relative to the job.
    pub(crate) fn keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        if self.files.is_some() {
            walk(&self.file(""), "", &mut keys);
        } else {
            self.list(&mut keys);
        }
        keys.sort_unstable();
        keys
    }

    /// Keys of the job's objects below a folder of it.
    pub(crate) fn keys_below(&self, folder: &str) -> Vec<String> {
        let mut keys = self.keys();
        keys.retain(|key| key.starts_with(folder));
        keys
    }

    pub(crate) fn get(&self, key: &str) -> Vec<u8> {
        if self.files.is_some() {
            return fs::read(self.file(key)).unwrap();
        }
        let place = self.place(key);
        self.curl(&[&format!("/{}/{place}", self.name)], b"")
    }

    pub(crate) fn put(&self, key: &str, bytes: &[u8]) {
        if self.files.is_some() {
            let file = self.file(key);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            return fs::write(file, bytes).unwrap();
        }
        let path = format!("/{}/{}", self.name, self.place(key));
        self.curl(&[&path, "--request", "PUT", "--data-binary", "@-"], bytes);
    }

    /// Steps and epochs of the commits, in order.
    pub(crate) fn commits(&self) -> Vec<(u64, u64)> {
        let keys = self.keys_below("commit/");
        let parse = |key: &String| {
            let name = key.strip_prefix("commit/")?.strip_suffix(".json")?;
            let (step, epoch) = name.split_once('-')?;
            Some((step.parse().ok()?, epoch.parse().ok()?))
        };
        keys.iter().filter_map(parse).collect()
    }

    /// The step of the newest commit, 0 if there is none.
    pub(crate) fn newest_step(&self) -> u64 {
        self.commits().last().map_or(0, |&(step, _)| step)
    }

    /// The key of a file of a checkpoint, as the newest commit of that step names it.
    pub(crate) fn key_of(&self, step: u64, file: &str) -> String {
        let commits = self.commits().into_iter();
        let (_, epoch) = commits.filter(|&(found, _)| found == step).max().unwrap();
        let record = self.json(&format!("commit/{step:010}-{epoch:08}.json"));
        let files = record["files"].as_array().unwrap();
        let mut keys = files.iter().map(|file| file["key"].as_str().unwrap());
        let found = keys.find(|key| key.ends_with(&format!("/{file}")));
        found.expect("a checkpoint has it").to_owned()
    }

    pub(crate) fn json(&self, key: &str) -> serde_json::Value {
        serde_json::from_slice(&self.get(key)).unwrap()
    }

    fn place(&self, key: &str) -> String {
        format!("{}/{JOB}/{key}", self.prefix)
    }

    fn file(&self, key: &str) -> PathBuf {
        let files = self.files.as_ref().expect("the server is in this process");
        files.path().join(&self.name).join(self.place(key))
    }

    fn list(&self, keys: &mut Vec<String>) {
        let place = self.place("");
        let mut after = String::new();
        loop {
            let path = format!(
                "/{}?list-type=2&prefix={}&start-after={}",
                self.name,
                place.replace('/', "%2F"),
                after.replace('/', "%2F")
            );
            let page = String::from_utf8(self.curl(&[&path], b"")).unwrap();
            let found: Vec<&str> = page
                .split("<Key>")
                .skip(1)
                .filter_map(|rest| rest.split("</Key>").next())
                .collect();
            let Some(last) = found.last() else {
                return;
            };
            after = (*last).to_owned();
            keys.extend(found.iter().map(|key| key[place.len()..].to_owned()));
        }
    }

    /// One signed request to a real server; the first word is the path.
    fn curl(&self, words: &[&str], body: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--fail-with-body",
            "--noproxy",
            "*",
        ])
        .args(["--max-time", "30", "--aws-sigv4", "aws:amz:us-east-1:s3"])
        .args(["--header", "x-amz-content-sha256: UNSIGNED-PAYLOAD"])
        .arg("--user")
        .arg(format!("{}:{}", self.access_key, self.secret_key))
        .arg(format!("http://{}{}", self.address, words[0]))
        .args(&words[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
        let mut curl = curl.spawn().unwrap();
        curl.stdin.take().unwrap().write_all(body).unwrap();
        let output = curl.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{words:?}: {text}");
        output.stdout
    }
}

/// Files below a folder, without those that are still being written.
fn walk(folder: &Path, above: &str, keys: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), &format!("{above}{name}/"), keys);
        } else if !name.starts_with('.') {
            keys.push(format!("{above}{name}"));
        }
    }
}

/// s3s-fs, with what it does otherwise than S3 set right.
struct Server {
    service: S3Service,
    /// s3s-fs looks, then writes: one writer at a time makes its conditions atomic.
    writer: tokio::sync::Mutex<()>,
    conditions: bool,
    root: PathBuf,
}

impl Server {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Answer, BoxError> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let reads = matches!(request.method().as_str(), "GET" | "HEAD");
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let place = head.uri.path().trim_start_matches('/');
        let bucket = place.split('/').next().unwrap_or_default();
        if !self.root.join(bucket).is_dir() {
            // s3s-fs would make it.
            return Ok(error_answer(404, "NoSuchBucket"));
        }
        if !self.conditions && head.headers.contains_key("if-none-match") {
            // The header is signed, so it stays: what is there goes first.
            fs::remove_file(self.root.join(place)).ok();
        }
        let _one = match reads || query.contains("partNumber=") {
            true => None,
            false => Some(self.writer.lock().await),
        };
        let request = Request::from_parts(head, body.into());
        let answer = self.service.call(request).await;
        let answer = answer.map_err(|e| format!("{e:?}"))?;
        // Of an upload that it does not know, s3s-fs says that access is denied.
        if query.contains("uploadId=") && answer.status() == 403 {
            return Ok(error_answer(404, "NoSuchUpload"));
        }
        Ok(answer.map(UnsyncBoxBody::new))
    }
}

/// Answers the requests of one connection until it is closed.
pub(crate) async fn serve<F>(connection: TcpStream, answer: impl Fn(Request<Incoming>) -> F)
where
    F: Future<Output = Result<Answer, BoxError>>,
{
    let http = hyper::server::conn::http1::Builder::new();
    let served = http.serve_connection(TokioIo::new(connection), service_fn(answer));
    // An error is a client that left, or an answer that shall not come.
    served.await.ok();
}

/// An error as S3 words it.
pub(crate) fn error_answer(status: u16, code: &str) -> Answer {
    let text = format!("<Error><Code>{code}</Code><Message>as ordered</Message></Error>");
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
    let answer = Response::builder().status(status);
    answer.body(UnsyncBoxBody::new(body)).unwrap()
}
