//! Output of several agents of one job, in one store.

use std::io;
use std::sync::Arc;

use super::*;
use crate::logs::{Console, Line};
use crate::redact::Redactor;
use crate::storage::memory::Memory;

const PATIENCE: Duration = Duration::from_secs(30);

fn logs(dir: &tempfile::TempDir) -> Logs {
    let console = Console {
        stdout: Box::new(io::sink()),
        stderr: Box::new(io::sink()),
    };
    Logs::open(dir.path(), Arc::new(Redactor::from_env()), console).unwrap()
}

/// Every line in the store, in the order of keys.
async fn lines(store: &dyn Storage, job: &Job) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in store.list(&job.logs(), None, 100).await.unwrap() {
        let bytes = store.get(&entry.key).await.unwrap().bytes;
        let ndjson = zstd::decode_all(&*bytes).unwrap();
        for line in str::from_utf8(&ndjson).unwrap().lines() {
            let line: Line = serde_json::from_str(line).unwrap();
            lines.push(format!("{} {}", line.attempt, line.line));
        }
    }
    lines
}

#[tokio::test]
async fn every_agents_output_is_kept_whoever_held_the_job_before() {
    let (store, job) = (Memory::new(), Job::new("j").unwrap());
    for (agent, attempt) in [("first", 1), ("second", 2), ("third", 2)] {
        let dir = tempfile::tempdir().unwrap();
        let logs = logs(&dir);
        logs.note(&format!("{agent} waits"));
        ship(&store, &job, &logs, true).await.unwrap();
        logs.begin(attempt);
        logs.note(&format!("{agent} has the lease"));
        ship(&store, &job, &logs, true).await.unwrap();
        logs.begin(attempt);
        logs.note(&format!("{agent} ends"));
        assert!(logs.flush(PATIENCE).await);
        // Its answer is lost, and then it is tried again.
        let segment = logs.next_segment().unwrap();
        let key = format!("{}{}", job.prefix(), segment.key);
        place(&store, &job, &key, segment.bytes.into())
            .await
            .unwrap();
        ship(&store, &job, &logs, true).await.unwrap();
        assert_eq!(logs.waiting_bytes(), 0);
    }
    let mut lines = lines(&store, &job).await;
    // A segment that found its key taken was placed anew by the try that followed.
    lines.dedup();
    assert_eq!(
        lines,
        [
            "1 first waits",
            "1 first has the lease",
            "1 first ends",
            "2 second waits",
            "2 second has the lease",
            "2 second ends",
            "2 third waits",
            "2 third has the lease",
            "2 third ends",
        ]
    );
}

#[tokio::test]
async fn an_attempt_that_left_no_output_is_known_by_the_status() {
    let (store, job) = (Memory::new(), Job::new("j").unwrap());
    assert_eq!(last_attempt(&store, &job).await.unwrap(), 0);
    store
        .put(&job.log_segment(3, 0), Bytes::from("lines"))
        .await
        .unwrap();
    for (status, attempt) in [
        (r#"{"version":1,"epoch":1,"status":{"attempt":5}}"#, 5),
        (r#"{"version":1,"epoch":1,"status":{"attempt":2}}"#, 3),
        (r#"{"status":{"attempt":-1}}"#, 3),
        ("not JSON", 3),
    ] {
        store.put(&job.status(), Bytes::from(status)).await.unwrap();
        assert_eq!(
            last_attempt(&store, &job).await.unwrap(),
            attempt,
            "{status}"
        );
    }
}
