//! Keys to the store that end and are replaced while a job runs. Not against a real server, which
//! would have to issue sessions.

use std::process::Command;

use crate::bucket::{Bucket, JOB};
use crate::machine::{ENDLESS, Site, agent};
use crate::proxy::{Fate, Proxy};
use crate::support::Scene;

const SESSION: &str = "the-session-token-of-the-test";

#[test]
fn keys_that_end_are_replaced_through_the_store() {
    let (scene, bucket) = (Scene::new(), Bucket::new());
    let proxy = Proxy::to(&bucket);
    let site = Site::on(&scene, &bucket, proxy.address(), ENDLESS);
    let mut holder = site.start("a");
    holder.runs_until("a commit", |_| bucket.newest_step() > 0);

    // Whoever can renew them hands them over.
    let mut hand = Command::new(agent());
    hand.arg("credentials")
        .arg(format!("--store={}", bucket.location()))
        .arg(format!("--job={JOB}"))
        .env("AWS_ENDPOINT_URL", format!("http://{}", bucket.address))
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", &bucket.access_key)
        .env("AWS_SECRET_ACCESS_KEY", &bucket.secret_key)
        .env_remove("AWS_SESSION_TOKEN");
    let refused = hand.output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(64), "{said}");
    assert!(said.contains("AWS_SESSION_TOKEN"), "{said}");
    let handed = hand.env("AWS_SESSION_TOKEN", SESSION).output().unwrap();
    assert!(handed.status.success(), "{handed:?}");
    holder.runs_until("the answer", |_| {
        let status = bucket.json("status.json");
        let answers = status["status"]["control"]["answers"].as_array().cloned();
        let mut answers = answers.unwrap_or_default().into_iter();
        answers.any(|it| it["kind"] == "credentials" && it["done"] == true)
    });

    // The old ones end.
    proxy.set_rule(|asked| match asked.session.as_deref() {
        Some(SESSION) => Fate::Pass,
        _ => Fate::Refuse(403, "ExpiredToken"),
    });
    let before = bucket.newest_step();
    holder.runs_until("a commit with the new keys", |_| {
        bucket.newest_step() > before
    });
    holder.stop();
    let log = holder.log();
    assert!(log.contains("asked with new keys"), "{log}");
    assert!(!log.contains(SESSION), "{log}");
    let status = bucket.get("status.json");
    assert!(!String::from_utf8_lossy(&status).contains(SESSION));
}
