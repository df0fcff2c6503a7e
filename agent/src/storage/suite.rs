//! What every store must do, whatever it is made of. Called by the tests of each store.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::crc64::{combine, crc64nvme};
use super::{Body, Created, Part, Storage, StorageError, UploadId};

const RACERS: usize = 32;
const ROUNDS: usize = 3;
const WRITERS: usize = 16;
const PART_BYTES: usize = 5 << 20;

/// Where stores may differ, and what this one does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Promises {
    /// A part that does not have its checksum is refused.
    pub(crate) checks_parts: bool,
    /// The whole object's checksum is told by `head`.
    pub(crate) keeps_checksums: bool,
    /// Unfinished uploads can be listed.
    pub(crate) lists_uploads: bool,
    /// What an object's key begins with is no object, and no error either.
    pub(crate) flat: bool,
    /// How many objects a long listing has: more than one page.
    pub(crate) many: usize,
    /// After a lost answer, a create is settled by the body that is there.
    pub(crate) settles_by_body: bool,
}

/// Runs every case in a place of its own below `prefix`, and removes what it made.
pub(crate) async fn run(store: Arc<dyn Storage>, prefix: &str, promises: Promises) {
    let at = |case: &str| format!("{prefix}/{case}");
    objects(&*store, &at("objects")).await;
    ranges(&*store, &at("ranges")).await;
    absences(&*store, &at("absences"), promises).await;
    creates(&*store, &at("creates"), promises).await;
    races(&store, &at("races")).await;
    listings(&*store, &at("listings")).await;
    many(&store, &at("many"), promises.many).await;
    odd_names(&*store, &at("odd")).await;
    bad_keys(&*store).await;
    uploads(&*store, &at("uploads"), promises).await;
    upload_replaces(&*store, &at("replaced")).await;
    aborts(&*store, &at("aborts"), promises).await;
    damaged_parts(&*store, &at("damaged"), promises).await;
    wrong_parts(&*store, &at("wrong")).await;
    clear(&store, prefix).await;
}

/// `len` bytes that no shift of them equals.
pub(crate) fn noise(len: usize, seed: u64) -> Bytes {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    Bytes::from(bytes)
}

/// Everything below a prefix is removed, and then nothing is listed.
pub(crate) async fn clear(store: &Arc<dyn Storage>, prefix: &str) {
    let prefix = format!("{prefix}/");
    let mut keys = store.list(&prefix, None, usize::MAX).await.unwrap();
    while !keys.is_empty() {
        let mut deletes = JoinSet::new();
        for entry in keys.split_off(keys.len().saturating_sub(WRITERS)) {
            let store = Arc::clone(store);
            deletes.spawn(async move { store.delete(&entry.key).await });
        }
        for deleted in deletes.join_all().await {
            deleted.unwrap();
        }
    }
    assert_eq!(store.list(&prefix, None, 10).await.unwrap(), []);
}

async fn objects(store: &dyn Storage, at: &str) {
    let key = format!("{at}/a");
    let (one, two) = (Bytes::from("one"), Bytes::from("two"));
    let first = store.put(&key, one.clone()).await.unwrap();
    let got = store.get(&key).await.unwrap();
    assert_eq!(got.bytes, one);
    assert_eq!(got.tag, first, "put and get tell one tag");
    let head = store.head(&key).await.unwrap();
    assert_eq!((head.bytes, &head.tag), (3, &first));
    if let Some(crc) = head.crc64nvme {
        assert_eq!(crc, crc64nvme(&one));
    }
    let second = store.put(&key, two.clone()).await.unwrap();
    assert_ne!(first, second, "other bytes have another tag");
    assert_eq!(store.get(&key).await.unwrap().bytes, two);
    let listed = store.list(&key, None, 10).await.unwrap();
    let [entry] = &listed[..] else {
        panic!("one object, listed as {listed:?}")
    };
    assert!(entry.tag.is_empty() || entry.tag == second, "{entry:?}");

    let empty = format!("{at}/empty");
    store.put(&empty, Bytes::new()).await.unwrap();
    assert_eq!(store.get(&empty).await.unwrap().bytes, Bytes::new());
    assert_eq!(store.head(&empty).await.unwrap().bytes, 0);
    assert_eq!(store.get_range(&empty, 0..10).await.unwrap(), Bytes::new());
}

async fn ranges(store: &dyn Storage, at: &str) {
    let key = format!("{at}/digits");
    store.put(&key, Bytes::from("0123456789")).await.unwrap();
    for (range, expected) in [
        (0..1, "0"),
        (3..6, "345"),
        (0..10, "0123456789"),
        (8..100, "89"),
        (9..10, "9"),
        (10..20, ""),
        (50..60, ""),
        (4..4, ""),
    ] {
        let got = store.get_range(&key, range.clone()).await.unwrap();
        assert_eq!(got, expected, "{range:?}");
    }
}

async fn absences(store: &dyn Storage, at: &str, promises: Promises) {
    let key = format!("{at}/none");
    let missing = |e: StorageError| assert!(e.is_missing(), "{e}");
    missing(store.get(&key).await.unwrap_err());
    missing(store.head(&key).await.unwrap_err());
    missing(store.get_range(&key, 0..1).await.unwrap_err());
    missing(store.get_range(&key, 1..1).await.unwrap_err());
    assert_eq!(store.list(&key, None, 10).await.unwrap(), []);
    store.delete(&key).await.unwrap();
    if !promises.flat {
        return;
    }
    // Neither is the folder of an object, nor what would be below one.
    store.put(&format!("{at}/x/y"), Bytes::new()).await.unwrap();
    missing(store.get(&format!("{at}/x")).await.unwrap_err());
    missing(store.head(&format!("{at}/x")).await.unwrap_err());
    missing(store.get(&format!("{at}/x/y/z")).await.unwrap_err());
    store.delete(&format!("{at}/x")).await.unwrap();
    store.head(&format!("{at}/x/y")).await.unwrap();
    store.delete(&format!("{at}/x/y")).await.unwrap();
    missing(store.head(&format!("{at}/x/y")).await.unwrap_err());
}

async fn creates(store: &dyn Storage, at: &str, promises: Promises) {
    let key = format!("{at}/once");
    let Created::New(tag) = store.create(&key, Bytes::from("first")).await.unwrap() else {
        panic!("nothing is there yet")
    };
    let second = store.create(&key, Bytes::from("second")).await.unwrap();
    assert_eq!(second, Created::Exists);
    if !promises.settles_by_body {
        let same = store.create(&key, Bytes::from("first")).await.unwrap();
        assert_eq!(same, Created::Exists, "equal bytes are no excuse");
    }
    let got = store.get(&key).await.unwrap();
    assert_eq!((got.bytes, got.tag), (Bytes::from("first"), tag));
    store.delete(&key).await.unwrap();
    let again = store.create(&key, Bytes::from("third")).await.unwrap();
    assert!(matches!(again, Created::New(_)));
}

async fn races(store: &Arc<dyn Storage>, at: &str) {
    for round in 0..ROUNDS {
        let key = format!("{at}/round-{round}");
        let mut racers = JoinSet::new();
        for racer in 0..RACERS {
            let (store, key) = (Arc::clone(store), key.clone());
            racers.spawn(async move {
                let body = Bytes::from(format!("racer {racer}"));
                // A store may ask rivals to try again; that is no answer yet.
                for _ in 0..100 {
                    match store.create(&key, body.clone()).await {
                        Ok(Created::New(_)) => return Some(body),
                        Ok(Created::Exists) => return None,
                        Err(e) => assert!(e.is_transient(), "{e}"),
                    }
                }
                panic!("no answer in 100 attempts")
            });
        }
        let answers = racers.join_all().await;
        let winners: Vec<Bytes> = answers.into_iter().flatten().collect();
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        assert_eq!(store.get(&key).await.unwrap().bytes, winners[0]);
    }
}

async fn listings(store: &dyn Storage, at: &str) {
    // In the order of their bytes, which is not that of folders: `-` is below `/`, `0` above.
    let names = ["a", "a-b", "b-/x", "b/c", "b/c-d", "b/d/e", "b0", "c"];
    for name in names.iter().rev() {
        let key = format!("{at}/{name}");
        store.put(&key, Bytes::from(*name)).await.unwrap();
    }
    let list = async |prefix: &str, after: Option<&str>, max: usize| -> Vec<String> {
        let prefix = format!("{at}/{prefix}");
        let after = after.map(|after| format!("{at}/{after}"));
        let found = store.list(&prefix, after.as_deref(), max).await.unwrap();
        let keys = found.iter().map(|e| e.key.strip_prefix(at).unwrap());
        keys.map(|key| key.trim_start_matches('/').to_owned())
            .collect()
    };
    assert_eq!(list("", None, 100).await, names);
    assert_eq!(list("", None, 3).await, names[..3]);
    assert_eq!(list("", None, 0).await, [""; 0]);
    assert_eq!(list("", Some("b/c"), 100).await, names[4..]);
    assert_eq!(list("", Some("b"), 2).await, names[2..4]);
    assert_eq!(list("", Some("zz"), 100).await, [""; 0]);
    assert_eq!(list("b/", None, 100).await, names[3..6]);
    assert_eq!(list("b/c", None, 100).await, names[3..5]);
    assert_eq!(list("b/", Some("b/c"), 100).await, names[4..6]);
    assert_eq!(list("none/", None, 100).await, [""; 0]);
    for entry in store.list(&format!("{at}/b/"), None, 10).await.unwrap() {
        let name = entry.key.strip_prefix(at).unwrap();
        assert_eq!(entry.bytes, name.len() as u64 - 1);
        assert!(entry.age_s.is_none_or(|age| age < 3600), "{entry:?}");
    }
}

async fn many(store: &Arc<dyn Storage>, at: &str, many: usize) {
    let keys: BTreeSet<String> = (0..many).map(|i| format!("{at}/{i:05}")).collect();
    let mut left: Vec<String> = keys.iter().cloned().collect();
    while !left.is_empty() {
        let mut puts = JoinSet::new();
        for key in left.split_off(left.len().saturating_sub(WRITERS)) {
            let store = Arc::clone(store);
            puts.spawn(async move { store.put(&key, Bytes::from("x")).await });
        }
        for put in puts.join_all().await {
            put.unwrap();
        }
    }
    let prefix = format!("{at}/");
    let list = async |after: Option<&str>, max| -> Vec<String> {
        let found = store.list(&prefix, after, max).await.unwrap();
        found.into_iter().map(|entry| entry.key).collect()
    };
    let listed = list(None, usize::MAX).await;
    assert!(
        listed.iter().eq(&keys),
        "{} of them, in order",
        listed.len()
    );
    assert_eq!(list(None, many - 10).await, listed[..many - 10]);
    let after = &listed[many - 20];
    assert_eq!(list(Some(after), usize::MAX).await, listed[many - 19..]);
    clear(store, at).await;
}

async fn odd_names(store: &dyn Storage, at: &str) {
    let long = "n".repeat(60);
    let mut names = vec![
        " leading and trailing ",
        "plus+plus",
        "%41 is not A",
        "a=b&c?d#e",
        "semi;colon:at@dollar$comma,",
        "quotes ' and \"",
        "(brackets) [square] {curly} <angle>",
        "tilde~bang!star*hat^bar|tick`",
        "...",
        "ünï/日本/🦀",
        &long,
    ];
    for name in &names {
        let key = format!("{at}/{name}");
        let body = Bytes::from(name.as_bytes().to_vec());
        store.put(&key, body.clone()).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().bytes, body, "{name}");
        let again = store.create(&key, Bytes::from("rival")).await.unwrap();
        assert_eq!(again, Created::Exists, "{name}");
        let found = store.list(&key, None, 2).await.unwrap();
        assert_eq!((found.len(), &found[0].key), (1, &key), "{name}");
    }
    names.sort_unstable();
    let prefix = format!("{at}/");
    let found = store.list(&prefix, None, 100).await.unwrap();
    let found: Vec<&str> = found.iter().map(|e| &e.key[prefix.len()..]).collect();
    assert_eq!(found, names);
}

async fn bad_keys(store: &dyn Storage) {
    for key in [
        "",
        "/absolute",
        "trailing/",
        "../escapes",
        "a/../../escapes",
        "a/./b",
        "a//b",
        ".",
        "..",
        ".anneal/tmp/x",
        "new\nline",
        "nul\0",
        "back\\slash",
        &"long/".repeat(300),
        &"n".repeat(256),
    ] {
        let refused = |e: StorageError| {
            assert!(matches!(e, StorageError::Permanent { .. }), "{key:?}: {e}");
        };
        refused(store.put(key, Bytes::new()).await.unwrap_err());
        refused(store.create(key, Bytes::new()).await.unwrap_err());
        refused(store.get(key).await.unwrap_err());
        refused(store.get_range(key, 0..1).await.unwrap_err());
        refused(store.head(key).await.unwrap_err());
        refused(store.delete(key).await.unwrap_err());
        refused(store.begin_upload(key).await.unwrap_err());
    }
}

/// A part in memory, and its checksum.
async fn send(
    store: &dyn Storage,
    key: &str,
    upload: &UploadId,
    number: u32,
    bytes: &Bytes,
) -> Result<Part, StorageError> {
    let body = Body::Bytes(bytes.clone());
    let crc = crc64nvme(bytes);
    store.upload_part(key, upload, number, body, crc).await
}

/// Out of order, one of them twice, one from a file, the last one shorter.
async fn uploads(store: &dyn Storage, at: &str, promises: Promises) {
    let key = format!("{at}/deep/er/object");
    let whole = noise(3 * PART_BYTES + 12_345, 1);
    let part = |i: usize| whole.slice(i * PART_BYTES..((i + 1) * PART_BYTES).min(whole.len()));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&whole).unwrap();

    let upload = store.begin_upload(&key).await.unwrap();
    let fourth = send(store, &key, &upload, 4, &part(3)).await.unwrap();
    let third = send(store, &key, &upload, 3, &part(2)).await.unwrap();
    send(store, &key, &upload, 1, &noise(PART_BYTES, 2))
        .await
        .unwrap();
    let first = send(store, &key, &upload, 1, &part(0)).await.unwrap();
    let body = Body::File {
        path: file.path().to_owned(),
        offset: PART_BYTES as u64,
        bytes: PART_BYTES as u64,
    };
    let crc = crc64nvme(&part(1));
    let second = store
        .upload_part(&key, &upload, 2, body, crc)
        .await
        .unwrap();
    let parts = [first, second, third, fourth];
    assert!(parts.iter().map(|p| p.number).eq(1..=4));

    let missing = store.head(&key).await.unwrap_err();
    assert!(
        missing.is_missing(),
        "not there before it is complete: {missing}"
    );
    let crc = crc64nvme(&whole);
    let combined = (0..4).fold(0, |crc, i| {
        combine(crc, crc64nvme(&part(i)), part(i).len() as u64)
    });
    assert_eq!(combined, crc);
    store
        .complete_upload(&key, &upload, &parts, crc)
        .await
        .unwrap();
    let head = store.head(&key).await.unwrap();
    assert_eq!(head.bytes, whole.len() as u64);
    let told = promises.keeps_checksums.then_some(crc);
    assert_eq!(head.crc64nvme, told);
    assert_eq!(store.get(&key).await.unwrap().bytes, whole);
    let edge = PART_BYTES as u64 * 2;
    let got = store.get_range(&key, edge - 5..edge + 5).await.unwrap();
    assert_eq!(got, whole[PART_BYTES * 2 - 5..PART_BYTES * 2 + 5]);

    // A small object may be sent as one part.
    let small = format!("{at}/small");
    let bytes = Bytes::from("little");
    let upload = store.begin_upload(&small).await.unwrap();
    let part = send(store, &small, &upload, 1, &bytes).await.unwrap();
    let crc = crc64nvme(&bytes);
    store
        .complete_upload(&small, &upload, &[part], crc)
        .await
        .unwrap();
    assert_eq!(store.get(&small).await.unwrap().bytes, bytes);
}

async fn upload_replaces(store: &dyn Storage, at: &str) {
    let key = format!("{at}/object");
    store.put(&key, Bytes::from("old")).await.unwrap();
    let bytes = Bytes::from("new");
    let upload = store.begin_upload(&key).await.unwrap();
    let part = send(store, &key, &upload, 1, &bytes).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap().bytes, "old");
    let crc = crc64nvme(&bytes);
    store
        .complete_upload(&key, &upload, &[part], crc)
        .await
        .unwrap();
    assert_eq!(store.get(&key).await.unwrap().bytes, "new");
}

async fn aborts(store: &dyn Storage, at: &str, promises: Promises) {
    let key = format!("{at}/object");
    let bytes = Bytes::from("never seen");
    let upload = store.begin_upload(&key).await.unwrap();
    let part = send(store, &key, &upload, 1, &bytes).await.unwrap();
    if promises.lists_uploads {
        let pending = store.list_uploads(at).await.unwrap();
        assert_eq!(pending.len(), 1);
        assert_eq!((&pending[0].key, &pending[0].upload), (&key, &upload));
        assert!(pending[0].age_s.is_none_or(|age| age < 3600));
        let elsewhere = store.list_uploads(&format!("{at}/none")).await.unwrap();
        assert_eq!(elsewhere, []);
    }
    assert_eq!(store.list(at, None, 10).await.unwrap(), [], "no object yet");
    store.abort_upload(&key, &upload).await.unwrap();
    store.abort_upload(&key, &upload).await.unwrap();
    let crc = crc64nvme(&bytes);
    let late = send(store, &key, &upload, 1, &bytes).await.unwrap_err();
    assert!(late.is_missing(), "{late}");
    let late = store.complete_upload(&key, &upload, &[part], crc).await;
    let late = late.unwrap_err();
    // Ceph 16 takes it for one that is being completed: try again later.
    assert!(late.is_missing() || late.is_transient(), "{late}");
    assert!(store.head(&key).await.unwrap_err().is_missing());
    if promises.lists_uploads {
        assert_eq!(store.list_uploads(at).await.unwrap(), []);
    }
}

async fn damaged_parts(store: &dyn Storage, at: &str, promises: Promises) {
    let key = format!("{at}/object");
    let upload = store.begin_upload(&key).await.unwrap();
    let body = || Body::Bytes(Bytes::from("damaged on the way"));
    let wrong = crc64nvme(b"as it was meant");
    let sent = store.upload_part(&key, &upload, 1, body(), wrong).await;
    if promises.checks_parts {
        let refused = sent.unwrap_err();
        assert!(
            matches!(refused, StorageError::Permanent { .. }),
            "{refused}"
        );
        assert!(refused.to_string().contains("checksum"), "{refused}");
    }
    store.abort_upload(&key, &upload).await.unwrap();
}

/// Faults of ours that no store is to hear of.
async fn wrong_parts(store: &dyn Storage, at: &str) {
    let key = format!("{at}/object");
    let bytes = Bytes::from("part");
    let crc = crc64nvme(&bytes);
    let upload = store.begin_upload(&key).await.unwrap();
    let part = send(store, &key, &upload, 1, &bytes).await.unwrap();
    for number in [0, 10_001] {
        let refused = send(store, &key, &upload, number, &bytes)
            .await
            .unwrap_err();
        assert!(
            matches!(refused, StorageError::Permanent { .. }),
            "{refused}"
        );
    }
    let second = Part {
        number: 2,
        ..part.clone()
    };
    for parts in [
        &[][..],
        std::slice::from_ref(&second),
        &[second.clone(), part.clone()],
    ] {
        let refused = store.complete_upload(&key, &upload, parts, crc).await;
        let refused = refused.unwrap_err();
        assert!(
            matches!(refused, StorageError::Permanent { .. }),
            "{refused}"
        );
    }
    store.abort_upload(&key, &upload).await.unwrap();
}
