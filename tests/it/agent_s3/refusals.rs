//! Stores that cannot be used: one clear line, the right exit status, and nothing is trained.

use std::time::{Duration, Instant};

use crate::bucket::Bucket;
use crate::machine::{ENDLESS, FAILED, RETRYABLE, Site};
use crate::support::Scene;

/// Runs an agent that must leave with this status and say this on one line, which is its only one
/// beside that of the exit.
#[track_caller]
fn refuses(site: &Site, status: Option<i32>, texts: &[&str]) -> Vec<String> {
    let begin = Instant::now();
    let mut agent = site.start("a");
    assert_eq!(agent.wait(), status, "{}", agent.log());
    assert!(
        begin.elapsed() < Duration::from_secs(60),
        "{:?}",
        begin.elapsed()
    );
    let lines = agent.own_lines();
    let errors: Vec<&String> = lines
        .iter()
        .filter(|line| line.contains("error: "))
        .collect();
    assert_eq!(errors.len(), 1, "{lines:#?}");
    for text in texts {
        assert!(errors[0].contains(text), "{text:?} is not in {}", errors[0]);
    }
    assert_eq!(agent.attempts(), 0, "{lines:#?}");
    assert!(!agent.run_dir().events().exists());
    lines
}

#[test]
fn wrong_credentials_are_named() {
    let (scene, bucket) = (Scene::new(), Bucket::new());
    let mut site = Site::on(&scene, &bucket, bucket.address, ENDLESS);
    let wrong = "a-secret-that-is-wrong";
    site.set("AWS_SECRET_ACCESS_KEY", wrong);
    let texts = ["the store cannot be used", "AWS_SECRET_ACCESS_KEY"];
    let lines = refuses(&site, FAILED, &texts);
    assert!(!lines.iter().any(|line| line.contains(wrong)), "{lines:#?}");

    site.set("AWS_ACCESS_KEY_ID", "NOBODYHASTHISKEY");
    refuses(
        &site,
        FAILED,
        &["the store cannot be used", "AWS_ACCESS_KEY_ID"],
    );
}

#[test]
fn a_missing_bucket_is_named() {
    let (scene, bucket) = (Scene::new(), Bucket::new());
    let mut site = Site::on(&scene, &bucket, bucket.address, ENDLESS);
    site.set_location("s3://no-such-bucket-here/tests");
    let texts = [
        "the store cannot be used",
        "no-such-bucket-here",
        "no such bucket",
    ];
    refuses(&site, FAILED, &texts);
}

#[test]
fn a_store_that_ignores_conditions_holds_no_lease() {
    let (scene, bucket) = (Scene::new(), Bucket::without_conditions());
    let site = Site::on(&scene, &bucket, bucket.address, ENDLESS);
    refuses(&site, FAILED, &["no lease can be held here", "create-only"]);
    assert_eq!(bucket.keys(), [""; 0], "nothing was claimed");
}

#[test]
fn a_store_that_is_not_there_is_waited_for_as_long_as_was_asked() {
    let (scene, bucket) = (Scene::new(), Bucket::new());
    let mut site = Site::on(&scene, &bucket, bucket.address, ENDLESS);
    // Port 1 of loopback: nobody listens.
    site.set("AWS_ENDPOINT_URL", "http://127.0.0.1:1");
    let site = site.with_flags(&["--store-patience=2s"]);
    refuses(&site, RETRYABLE, &["the store is not available"]);
}
