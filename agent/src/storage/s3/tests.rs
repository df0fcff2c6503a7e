//! The suite against servers that speak S3, and what a bucket is particular about.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_s3::config::Credentials;
use bytes::Bytes;

use super::super::probe::{Finding, probe};
use super::super::retry::{Policy, Retry};
use super::super::suite::{self, Promises, noise};
use super::super::{Body, Created, Keys, Storage, StorageError};
use super::super::{crc64::crc64nvme, open};
use super::errors::Failed;
use super::server::{ACCESS_KEY, BUCKET, Fault, SECRET_KEY, Server};
use super::{S3, Settings};

/// What s3s-fs does behind the hook.
const IN_PROCESS: Promises = Promises {
    checks_parts: true,
    keeps_checksums: false,
    lists_uploads: false,
    flat: false,
    many: 60,
    settles_by_body: false,
};

fn retry(store: S3) -> Retry {
    Retry::new(Arc::new(store), Policy::until(Duration::from_secs(60)), 3)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_keeps_the_suite() {
    let server = Server::start().await;
    let store = S3 {
        page_keys: 7,
        ..server.store().await
    };
    suite::run(Arc::new(store), "suite", IN_PROCESS).await;
    assert!(server.count("GET ", "continuation-token") > 20);
}

/// `ANNEAL_TEST_S3` names a bucket of a real server, `ANNEAL_TEST_S3_PROMISES` what it does, and
/// `AWS_*` where it is: `tests/servers/` start some and say so.
#[tokio::test(flavor = "multi_thread")]
async fn a_real_server_keeps_the_suite() {
    let Ok(location) = std::env::var("ANNEAL_TEST_S3") else {
        eprintln!("skipped: ANNEAL_TEST_S3 names no bucket (see tests/servers)");
        return;
    };
    let promises = std::env::var("ANNEAL_TEST_S3_PROMISES").unwrap();
    let promised = |what: &str| promises.split(',').any(|promise| promise == what);
    let promises = Promises {
        checks_parts: promised("checks_parts"),
        keeps_checksums: promised("keeps_checksums"),
        lists_uploads: promised("lists_uploads"),
        flat: true,
        many: 1_050,
        settles_by_body: false,
    };
    let store = open::open(&location).await.unwrap();
    let prefix = format!("suite-{:016x}", fastrand::u64(..));
    suite::run(Arc::clone(&store), &prefix, promises).await;

    // The probe finds out by itself what is promised.
    let verdict = probe(&store, fastrand::u64(..), |_| {}).await.unwrap();
    assert!(verdict.allows_lease(), "{verdict}");
    let works = |finding: &Finding| *finding == Finding::Works;
    assert_eq!(works(&verdict.auth), promised("checks_keys"), "{verdict}");
    assert_eq!(
        works(&verdict.part_checksums),
        promises.checks_parts,
        "{verdict}"
    );
    assert_eq!(
        works(&verdict.kept_checksums),
        promises.keeps_checksums,
        "{verdict}"
    );
    assert_eq!(
        works(&verdict.lists_uploads),
        promises.lists_uploads,
        "{verdict}"
    );
    println!("{verdict}");

    let nowhere = format!("s3://no-such-bucket-{:016x}", fastrand::u64(..));
    let nowhere = open::open(&nowhere).await.unwrap();
    for error in [
        nowhere.get("key").await.unwrap_err(),
        nowhere.head("key").await.unwrap_err(),
        nowhere.list("", None, 10).await.unwrap_err(),
        nowhere.put("key", Bytes::new()).await.unwrap_err(),
        nowhere.create("key", Bytes::new()).await.unwrap_err(),
    ] {
        assert!(matches!(error, StorageError::Permanent { .. }), "{error}");
        assert!(error.to_string().contains("no such bucket"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_finds_what_a_server_does() {
    let server = Server::start().await;
    let store: Arc<dyn Storage> = Arc::new(server.store().await);
    let verdict = probe(&store, 1, |_| {}).await.unwrap();
    assert!(verdict.allows_lease(), "{verdict}");
    assert_eq!(verdict.part_checksums, Finding::Works);
    assert_eq!(verdict.auth, Finding::Works);
    assert_eq!(verdict.warning(), None);
    assert_eq!(store.list("", None, 10).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_look_at_signatures_is_named() {
    let server = Server::start_open().await;
    let store: Arc<dyn Storage> = Arc::new(server.store().await);
    let verdict = probe(&store, 1, |_| {}).await.unwrap();
    assert!(
        matches!(&verdict.auth, Finding::Fails(seen) if seen.contains("a wrong secret")),
        "{verdict}"
    );
    assert!(verdict.allows_lease(), "{verdict}");
    let summary = verdict.summary();
    assert!(summary.contains("keys keep nobody out"), "{summary}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_be_reached_is_named_with_its_address() {
    let server = Server::start().await;
    let store = server.store().await;
    let address = server.settings().endpoint.unwrap();
    drop(server);
    let store: Arc<dyn Storage> = Arc::new(store);
    let error = probe(&store, 1, |_| {}).await.unwrap_err();
    let text = error.to_string();
    assert!(error.is_transient(), "{text}");
    assert!(text.contains("check access: "), "{text}");
    assert!(text.contains(&format!("asked {address}")), "{text}");
}

#[tokio::test]
async fn every_failure_of_the_wire_is_transient() {
    let server = Server::start().await;
    let store = server.store().await;
    store.put("key", Bytes::from("0123456789")).await.unwrap();
    for fault in [
        Fault::Drop,
        Fault::LoseAnswer,
        Fault::Answer(500, "InternalError"),
        Fault::Answer(503, "SlowDown"),
        Fault::Answer(409, "ConditionalRequestConflict"),
        Fault::Answer(429, "TooManyRequests"),
        Fault::Answer(400, "RequestTimeout"),
        Fault::Answer(400, "ExpiredToken"),
        Fault::Answer(403, "RequestTimeTooSkewed"),
        Fault::CutBody(4),
    ] {
        server.next("GET ", "key", fault);
        let error = store.get("key").await.unwrap_err();
        assert!(error.is_transient(), "get, {fault:?}: {error}");
        server.next("GET ", "key", fault);
        let error = store.get_range("key", 2..9).await.unwrap_err();
        assert!(error.is_transient(), "get_range, {fault:?}: {error}");
        if matches!(fault, Fault::CutBody(_)) {
            continue;
        }
        server.next("PUT ", "key", fault);
        let error = store.create("key", Bytes::new()).await.unwrap_err();
        assert!(error.is_transient(), "create, {fault:?}: {error}");
        server.next("GET ", "list-type", fault);
        let error = store.list("", None, 10).await.unwrap_err();
        assert!(error.is_transient(), "list, {fault:?}: {error}");
        server.next("HEAD ", "key", fault);
        let error = store.head("key").await.unwrap_err();
        let bare = matches!(fault, Fault::Answer(400 | 403, _));
        assert!(error.is_transient() || bare, "head, {fault:?}: {error}");
    }
    assert_eq!(server.pending(), 0);
    assert_eq!(store.get("key").await.unwrap().bytes, "0123456789");
}

#[tokio::test]
async fn each_call_is_one_request() {
    let server = Server::start().await;
    let store = server.store().await;
    server.next("PUT ", "key", Fault::Answer(503, "SlowDown"));
    store.put("key", Bytes::new()).await.unwrap_err();
    assert_eq!(
        server.count("PUT ", "key"),
        1,
        "retries are the decorator's"
    );
}

#[tokio::test]
async fn what_needs_somebody_says_what_to_do() {
    let server = Server::start().await;
    let store = server.store().await;
    for (status, code, hint) in [
        (403, "AccessDenied", "may not do this"),
        (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        (404, "NoSuchBucket", "no such bucket"),
        (301, "PermanentRedirect", "AWS_REGION"),
        (400, "AuthorizationHeaderMalformed", "AWS_REGION"),
        (501, "NotImplemented", "probe-store"),
        (507, "Whatever", "full"),
        (404, "", "AWS_ENDPOINT_URL"),
    ] {
        server.next("GET ", "key", Fault::Answer(status, code));
        let error = store.get("key").await.unwrap_err();
        assert!(
            matches!(error, StorageError::Permanent { .. }),
            "{code}: {error}"
        );
        assert!(error.to_string().contains(hint), "{code}: {error}");
    }
    assert_eq!(server.pending(), 0);
}

#[tokio::test]
async fn keys_that_were_told_are_used_until_they_expire() {
    let server = Server::start().await;
    let keys = |secret: &str, expires| Keys {
        access_key_id: ACCESS_KEY.to_owned(),
        secret_access_key: secret.to_owned(),
        session_token: "session".to_owned(),
        expires,
    };
    let wrong = Settings {
        credentials: Some(Credentials::new(ACCESS_KEY, "old", None, None, "test")),
        ..server.settings()
    };
    let store = S3::open(BUCKET, "", wrong).await.unwrap();
    assert!(store.put("key", Bytes::new()).await.is_err());
    store.renew(&keys(SECRET_KEY, None)).unwrap();
    store.put("key", Bytes::from("new")).await.unwrap();
    // A copy asks with them, too.
    assert_eq!(store.clone().get("key").await.unwrap().bytes, "new");

    let store = server.store().await;
    let (past, future) = (
        SystemTime::UNIX_EPOCH,
        SystemTime::now() + Duration::from_secs(3600),
    );
    store.renew(&keys("wrong", Some(future))).unwrap();
    assert!(store.put("key", Bytes::new()).await.is_err());
    store.renew(&keys("wrong", Some(past))).unwrap();
    store.put("key", Bytes::new()).await.unwrap();
    let told = format!("{:?}", keys(SECRET_KEY, None));
    assert!(!told.contains(SECRET_KEY), "{told}");
}

#[tokio::test]
async fn wrong_credentials_and_buckets_are_no_absence() {
    let server = Server::start().await;
    let secret = "wrong-secret-that-nobody-may-read";
    let wrong = Settings {
        credentials: Some(Credentials::new(
            "ACCESSKEYOFTHETEST",
            secret,
            None,
            None,
            "test",
        )),
        ..server.settings()
    };
    let nowhere = S3::open("no-such-bucket", "", server.settings())
        .await
        .unwrap();
    let stranger = S3::open(BUCKET, "", wrong).await.unwrap();
    for error in [
        // The other requests make a bucket in s3s-fs, or find no key in none.
        nowhere.head("key").await.unwrap_err(),
        nowhere.list("", None, 10).await.unwrap_err(),
        stranger.get("key").await.unwrap_err(),
        stranger.head("key").await.unwrap_err(),
        stranger.list("", None, 10).await.unwrap_err(),
        stranger.put("key", Bytes::new()).await.unwrap_err(),
        stranger.create("key", Bytes::new()).await.unwrap_err(),
    ] {
        assert!(matches!(error, StorageError::Permanent { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("hint: ") && !text.contains(secret), "{text}");
    }
}

#[tokio::test]
async fn nobody_there_is_transient() {
    // A port that was free a moment ago.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let settings = Settings {
        endpoint: Some(format!("http://{address}")),
        ..Server::start().await.settings()
    };
    let store = S3::open(BUCKET, "", settings).await.unwrap();
    for error in [
        store.head("key").await.unwrap_err(),
        store.list("", None, 10).await.unwrap_err(),
    ] {
        assert!(error.is_transient(), "{error}");
        assert!(error.to_string().contains("refused"), "{error}");
    }
}

#[tokio::test]
async fn a_lost_answer_does_not_lose_a_lease() {
    let server = Server::start().await;
    let store = retry(server.store().await);
    for fault in [Fault::LoseAnswer, Fault::DoneBut(500, "InternalError")] {
        let key = format!("lease-{}", server.count("PUT ", ""));
        server.next("PUT ", "lease", fault);
        let created = store.create(&key, Bytes::from("nonce")).await.unwrap();
        assert!(matches!(created, Created::New(_)), "{fault:?}");
        let rival = store.create(&key, Bytes::from("rival")).await.unwrap();
        assert_eq!(rival, Created::Exists);
    }
}

#[tokio::test]
async fn an_upload_gets_over_faults_of_every_request() {
    let server = Server::start().await;
    let store = retry(server.store().await);
    let whole = noise((5 << 20) + 1_000, 9);
    let (first, second) = (whole.slice(..5 << 20), whole.slice(5 << 20..));
    for fault in [
        Fault::Drop,
        Fault::LoseAnswer,
        Fault::Answer(503, "SlowDown"),
        Fault::DoneBut(500, "InternalError"),
        // Success with a body that is an error: of a completion alone.
        Fault::Answer(200, "InternalError"),
    ] {
        let completion_only = fault == Fault::Answer(200, "InternalError");
        let key = format!("object-{}", server.count("POST ", "uploads"));
        if !completion_only {
            server.next("POST ", "uploads", fault);
            server.next("PUT ", "partNumber=2", fault);
        }
        server.next("POST ", "uploadId", fault);
        let upload = store.begin_upload(&key).await.unwrap();
        let mut parts = Vec::new();
        for (number, bytes) in [(1, &first), (2, &second)] {
            let body = Body::Bytes(bytes.clone());
            let crc = crc64nvme(bytes);
            let part = store.upload_part(&key, &upload, number, body, crc).await;
            parts.push(part.unwrap());
        }
        let crc = crc64nvme(&whole);
        store
            .complete_upload(&key, &upload, &parts, crc)
            .await
            .unwrap();
        assert_eq!(store.get(&key).await.unwrap().bytes, whole, "{fault:?}");
        assert_eq!(server.pending(), 0, "{fault:?}");
    }
}

#[tokio::test]
async fn a_body_that_comes_slowly_is_waited_for() {
    let server = Server::start().await;
    let store = server.store().await;
    store.put("key", Bytes::from("slow")).await.unwrap();
    server.next("GET ", "key", Fault::StallBody(Duration::from_secs(2)));
    assert_eq!(store.get("key").await.unwrap().bytes, "slow");
}

#[tokio::test]
async fn a_request_without_an_answer_ends() {
    let server = Server::start().await;
    let store = server.store().await;
    server.next("GET ", "key", Fault::Hang);
    let limit = Duration::from_millis(300);
    let request = store.client().get_object().bucket(BUCKET).key("key");
    let failed = store.send(limit, request.send()).await.unwrap_err();
    let error = store.told("get", "key", failed);
    assert!(error.is_transient(), "{error}");
    assert!(error.to_string().contains("no answer within"), "{error}");
}

#[test]
fn limits_follow_the_size_of_a_body() {
    assert_eq!(super::body_limit(0), Duration::from_secs(60));
    assert_eq!(super::body_limit(16 << 20), Duration::from_secs(167));
}

#[test]
fn ages_are_told_by_the_clock_of_the_store() {
    let clock = super::Heard::default();
    clock.hear_date("Thu, 01 Jan 2015 00:00:00 GMT");
    let then = std::time::UNIX_EPOCH + Duration::from_secs(1_420_070_400);
    let off = clock.now().duration_since(then).unwrap();
    assert!(off < Duration::from_secs(5), "{off:?}");
    clock.hear_date("no date");
    assert!(clock.now().duration_since(then).unwrap() < Duration::from_secs(5));
}

#[tokio::test]
async fn places_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store").display().to_string();
    assert_eq!(open::open(&path).await.unwrap().name(), path);
    let url = format!("file://{path}");
    assert_eq!(open::open(&url).await.unwrap().name(), path);
    for (given, name) in [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/some/prefix/", "s3://bucket/some/prefix"),
    ] {
        assert_eq!(open::open(given).await.unwrap().name(), name);
    }
    for wrong in [
        "s3://",
        "s3:///prefix",
        "s3://key:secret@bucket/x",
        "s3://bucket/../x",
        "https://key:secret@host/bucket",
        "file://relative",
    ] {
        let error = open::open(wrong).await.err().unwrap();
        assert!(matches!(error, StorageError::Permanent { .. }), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[test]
fn what_never_got_an_answer_says_what_to_do() {
    let text = |detail: &str| {
        let failed = Failed::cut(&*Box::<dyn std::error::Error>::from(detail));
        failed.into_error("s3://bucket", "get", "key")
    };
    for (detail, transient, hint) in [
        (
            "an error occurred while loading credentials: forbidden",
            false,
            "AWS_PROFILE",
        ),
        (
            "the credential provider was not enabled",
            false,
            "AWS_ACCESS_KEY_ID",
        ),
        ("loading credentials timed out", true, "hop limit of 2"),
        (
            "loading credentials: io error: refused",
            true,
            "hop limit of 2",
        ),
        (
            "invalid peer certificate: UnknownIssuer",
            false,
            "SSL_CERT_FILE",
        ),
        (
            "dns error: failed to lookup address",
            true,
            "AWS_ENDPOINT_URL",
        ),
        (
            "corrupt message of type InvalidContentType",
            false,
            "AWS_ENDPOINT_URL",
        ),
        ("io error: connection reset", true, "reset"),
    ] {
        let error = text(detail);
        assert_eq!(error.is_transient(), transient, "{error}");
        assert!(error.to_string().contains(hint), "{error}");
    }
}
