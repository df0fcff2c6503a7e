//! The suite against the stores that need nothing but this machine, and what is particular to them.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::crc64::{self, Crc64, crc64nvme};
use super::faults::{Fault, Faulty, Operation, Plan};
use super::local::Local;
use super::memory::Memory;
use super::retry::{Policy, Retry};
use super::suite::{self, Promises};
use super::{Body, Created, Storage, StorageError};
use crate::clock::BootClock;

const MEMORY: Promises = Promises {
    checks_parts: true,
    keeps_checksums: true,
    lists_uploads: true,
    flat: true,
    many: 1_050,
    settles_by_body: false,
};
const LOCAL: Promises = Promises {
    keeps_checksums: false,
    // A folder has no pages, and syncs each file.
    many: 60,
    ..MEMORY
};

fn faulty(plan: Plan) -> Arc<Faulty> {
    Arc::new(Faulty::new(
        Arc::new(Memory::new()),
        Arc::new(BootClock),
        plan,
    ))
}

fn retry(store: &Arc<Faulty>, seconds: u64) -> Arc<Retry> {
    let policy = Policy::until(Duration::from_secs(seconds));
    Arc::new(Retry::new(Arc::clone(store) as Arc<dyn Storage>, policy, 7))
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_keeps_the_suite() {
    suite::run(Arc::new(Memory::new()), "suite", MEMORY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_keeps_the_suite() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("made/by/open");
    suite::run(Arc::new(Local::open(&root).unwrap()), "suite", LOCAL).await;
    let left: Vec<_> = fs::read_dir(&root)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(
        left,
        [".anneal"],
        "empty folders are removed with their last object"
    );
    for aside in ["tmp", "uploads"] {
        let left = fs::read_dir(root.join(".anneal").join(aside)).unwrap();
        assert_eq!(left.count(), 0, "{aside}");
    }
}

/// Every fault that a store may get over, at rates no real one has.
#[tokio::test(start_paused = true)]
async fn retries_keep_the_suite_over_faults() {
    for seed in 0..4 {
        let store = faulty(Plan {
            seed,
            fail_before: 0.1,
            fail_after: 0.1,
            conflict: 0.1,
            slow_down: 0.1,
            delay: 0.1,
            delay_max: Duration::from_secs(3),
            ..Plan::default()
        });
        let promises = Promises {
            settles_by_body: true,
            // A begun upload whose answer was lost stays until it is swept.
            lists_uploads: false,
            ..MEMORY
        };
        suite::run(retry(&store, 600), "suite", promises).await;
    }
}

#[test]
fn the_checksum_is_the_published_one() {
    // The check value of CRC-64/NVME in the catalogue of parametrised CRC algorithms.
    assert_eq!(crc64nvme(b"123456789"), 0xae8b_1486_0a79_9888);
    assert_eq!(crc64nvme(b""), 0);
    assert_eq!(Crc64::new().value(), 0);
    let mut parts = Crc64::new();
    parts.update(b"1234");
    parts.update(b"56789");
    assert_eq!(parts.value(), crc64nvme(b"123456789"));
    let combined = crc64::combine(crc64nvme(b"1234"), crc64nvme(b"56789"), 5);
    assert_eq!(combined, crc64nvme(b"123456789"));
}

#[tokio::test(start_paused = true)]
async fn a_create_whose_answer_is_lost_is_ours() {
    let store = faulty(Plan::default());
    let retry = retry(&store, 60);
    store.next(Operation::Create, Fault::After);
    let created = retry.create("lease", Bytes::from("mine")).await.unwrap();
    assert!(matches!(created, Created::New(_)));
    assert_eq!(store.calls(Operation::Create), 2);
    let created = retry.create("lease", Bytes::from("mine")).await.unwrap();
    assert_eq!(
        created,
        Created::Exists,
        "without a lost answer nothing is read back"
    );
}

#[tokio::test(start_paused = true)]
async fn a_create_that_a_rival_won_meanwhile_is_not_ours() {
    let store = faulty(Plan::default());
    store.next(Operation::Create, Fault::Before);
    let retry = retry(&store, 60);
    let waiting = retry.create("lease", Bytes::from("mine"));
    let rival = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        store.create("lease", Bytes::from("rival")).await.unwrap()
    };
    let (created, rival) = tokio::join!(waiting, rival);
    assert!(matches!(rival, Created::New(_)));
    assert_eq!(created.unwrap(), Created::Exists);
}

/// The request was given up, and arrives after its second attempt looked in vain.
#[tokio::test(start_paused = true)]
async fn a_create_that_arrives_late_is_ours() {
    let store = faulty(Plan::default());
    let retry = retry(&store, 60);
    store.next(Operation::Create, Fault::Late(Duration::from_millis(250)));
    store.next(
        Operation::Create,
        Fault::DelayBefore(Duration::from_secs(1)),
    );
    let created = retry.create("lease", Bytes::from("mine")).await.unwrap();
    assert!(matches!(created, Created::New(_)));
}

#[tokio::test(start_paused = true)]
async fn a_completion_whose_answer_is_lost_is_done() {
    let store = faulty(Plan::default());
    let retry = retry(&store, 60);
    let bytes = Bytes::from("object");
    let crc = crc64nvme(&bytes);
    let upload = retry.begin_upload("key").await.unwrap();
    let body = Body::Bytes(bytes);
    let part = retry
        .upload_part("key", &upload, 1, body, crc)
        .await
        .unwrap();
    store.next(Operation::CompleteUpload, Fault::After);
    retry
        .complete_upload("key", &upload, std::slice::from_ref(&part), crc)
        .await
        .unwrap();
    let unknown = retry.complete_upload("key", &upload, &[part], crc).await;
    assert!(
        unknown.unwrap_err().is_missing(),
        "nothing was lost this time"
    );
}

#[tokio::test(start_paused = true)]
async fn retries_end_at_their_deadline_with_the_last_error() {
    let store = faulty(Plan::default());
    store.set_down(true);
    let retry = retry(&store, 120);
    let start = tokio::time::Instant::now();
    let error = retry.list("", None, 10).await.unwrap_err();
    assert!(error.is_transient());
    let text = error.to_string();
    assert!(
        text.contains("connection refused") && text.contains("given up"),
        "{text}"
    );
    let took = start.elapsed().as_secs();
    assert!((90..=120).contains(&took), "{took} s");
    let calls = store.calls(Operation::List);
    assert!((10..30).contains(&calls), "{calls} calls");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_ends_at_the_deadline() {
    let store = faulty(Plan::default());
    store.next(
        Operation::Get,
        Fault::DelayBefore(Duration::from_secs(86_400)),
    );
    let start = tokio::time::Instant::now();
    let error = retry(&store, 30).get("key").await.unwrap_err();
    assert!(error.is_transient(), "no answer is no absence: {error}");
    assert_eq!(start.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_get_better_is_not_retried() {
    let store = faulty(Plan::default());
    let retry = retry(&store, 30);
    assert!(retry.get("none").await.unwrap_err().is_missing());
    assert!(retry.put("..", Bytes::new()).await.is_err());
    assert_eq!(
        (store.calls(Operation::Get), store.calls(Operation::Put)),
        (1, 1)
    );
}

#[tokio::test]
async fn one_seed_is_one_series_of_faults() {
    let series = async |seed| {
        let store = faulty(Plan {
            seed,
            fail_before: 0.3,
            slow_down: 0.2,
            ..Plan::default()
        });
        let mut failed = Vec::new();
        for i in 0..64 {
            let put = store.put(&format!("{i}"), Bytes::new()).await;
            failed.push(put.err().map(|e| e.to_string()));
        }
        failed
    };
    assert_eq!(series(1).await, series(1).await);
    assert_ne!(series(1).await, series(2).await);
}

#[tokio::test]
async fn a_folder_that_is_gone_is_not_an_empty_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = Local::open(folder.path().join("store")).unwrap();
    store.put("a/b", Bytes::from("x")).await.unwrap();
    fs::rename(folder.path().join("store"), folder.path().join("away")).unwrap();
    fs::create_dir(folder.path().join("store")).unwrap();
    for error in [
        store.list("", None, 10).await.unwrap_err(),
        store.get("a/b").await.unwrap_err(),
        store.put("a/c", Bytes::new()).await.unwrap_err(),
    ] {
        assert!(matches!(error, StorageError::Permanent { .. }), "{error}");
        assert!(error.to_string().contains("is gone"), "{error}");
    }
}

#[tokio::test]
async fn a_folder_names_what_it_cannot_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "not a folder").unwrap();
    let error = Local::open(&file).err().unwrap();
    assert!(matches!(error, StorageError::Permanent { .. }), "{error}");
    assert!(error.to_string().contains("file: open"), "{error}");

    let store = Local::open(folder.path()).unwrap();
    store.put("object", Bytes::from("x")).await.unwrap();
    let below = store.put("object/below", Bytes::new()).await.unwrap_err();
    assert!(!below.is_transient() && !below.is_missing(), "{below}");
}

#[tokio::test]
async fn uploads_of_a_dead_process_can_be_swept() {
    let folder = tempfile::tempdir().unwrap();
    let dead = Local::open(folder.path()).unwrap();
    let upload = dead.begin_upload("data/object").await.unwrap();
    drop(dead);
    let store = Local::open(folder.path()).unwrap();
    let pending = store.list_uploads("data/").await.unwrap();
    assert_eq!(pending.len(), 1);
    assert_eq!(pending[0].upload, upload);
    store.abort_upload(&pending[0].key, &upload).await.unwrap();
    assert_eq!(store.list_uploads("").await.unwrap(), []);
}

#[tokio::test]
async fn an_upload_id_leads_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = Local::open(folder.path()).unwrap();
    store.put("a", Bytes::from("x")).await.unwrap();
    for id in ["../..", "", ".", "../tmp"] {
        let upload = super::UploadId(id.to_owned());
        store.abort_upload("a", &upload).await.unwrap();
    }
    store.get("a").await.unwrap();
}

/// Removing the last object of a folder removes the folder, under somebody who is about to write
/// into it.
#[tokio::test(flavor = "multi_thread")]
async fn writers_get_over_folders_that_vanish() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Local::open(folder.path()).unwrap());
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            let key = format!("deep/er/{writer}");
            for _ in 0..50 {
                store.put(&key, Bytes::from("x")).await.unwrap();
                store.get(&key).await.unwrap();
                store.delete(&key).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    assert_eq!(store.list("", None, 10).await.unwrap(), []);
}

/// What others write lies in the store's own folder for a moment, which is cleared by who opens it.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_opened_while_others_write_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Local::open(folder.path()).unwrap());
    let opened = Arc::new(AtomicBool::new(false));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let (store, opened) = (Arc::clone(&store), Arc::clone(&opened));
        writers.spawn(async move {
            while !opened.load(Ordering::Relaxed) {
                store
                    .put(&format!("key{writer}"), Bytes::from("x"))
                    .await
                    .unwrap();
            }
        });
    }
    let opens = (0..3000).map(|_| Local::open(folder.path()).err());
    let faults: Vec<_> = opens.flatten().collect();
    opened.store(true, Ordering::Relaxed);
    writers.join_all().await;
    assert!(faults.is_empty(), "{} of 3000: {}", faults.len(), faults[0]);
}

#[tokio::test]
async fn what_a_killed_process_left_half_written_is_swept() {
    let folder = tempfile::tempdir().unwrap();
    drop(Local::open(folder.path()).unwrap());
    let aside = folder.path().join(".anneal/tmp");
    for (name, age_h) in [("old", 25), ("new", 1)] {
        let file = fs::File::create(aside.join(name)).unwrap();
        let then = std::time::SystemTime::now() - Duration::from_secs(age_h * 3600);
        file.set_modified(then).unwrap();
    }
    let store = Local::open(folder.path()).unwrap();
    assert!(!aside.join("old").exists());
    assert!(aside.join("new").exists(), "somebody may be writing it");
    assert_eq!(store.list("", None, 10).await.unwrap(), []);
}
