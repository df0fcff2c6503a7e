//! The probe against stores that are right, and wrong in one way each.

use std::sync::Arc;
use std::time::Duration;

use super::super::faults::{Fault, Faulty, Operation, Plan, Quirks};
use super::super::local::Local;
use super::super::memory::Memory;
use super::super::{Storage, StorageError};
use super::{CHECK_MAX, Finding, Verdict, probe};
use crate::clock::BootClock;

fn faulty(plan: Plan, quirks: Quirks) -> Arc<Faulty> {
    let inner = Arc::new(Memory::new());
    Arc::new(Faulty::new(inner, Arc::new(BootClock), plan).with_quirks(quirks))
}

async fn verdict(store: &Arc<Faulty>) -> Verdict {
    let store = Arc::clone(store) as Arc<dyn Storage>;
    probe(&store, 1, |_| {}).await.unwrap()
}

fn failing(verdict: &Verdict) -> Vec<&'static str> {
    let findings = verdict.findings().into_iter();
    let failing = findings.filter(|(_, finding)| matches!(finding, Finding::Fails(_)));
    failing.map(|(name, _)| name).collect()
}

#[tokio::test]
async fn a_right_store_passes_and_is_left_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let stores: [(Arc<dyn Storage>, &[&str]); 2] = [
        (Arc::new(Memory::new()), &[]),
        (
            Arc::new(Local::open(folder.path()).unwrap()),
            &["kept checksums"],
        ),
    ];
    for (store, lacks) in stores {
        let verdict = probe(&store, 1, |_| {}).await.unwrap();
        assert_eq!(failing(&verdict), lacks, "{verdict}");
        assert!(verdict.allows_lease(), "{verdict}");
        assert_eq!(store.list("", None, 10).await.unwrap(), []);
        assert_eq!(store.list_uploads("").await.unwrap(), []);
    }
}

#[tokio::test]
async fn each_fault_of_a_store_is_found() {
    for (quirks, found) in [
        (
            Quirks {
                create_replaces: true,
                ..Quirks::default()
            },
            &["create-only", "races"][..],
        ),
        (
            Quirks {
                create_races: true,
                ..Quirks::default()
            },
            &["races"],
        ),
        (
            Quirks {
                list_lag: Duration::from_secs(5),
                ..Quirks::default()
            },
            &["strong list"],
        ),
    ] {
        let verdict = verdict(&faulty(Plan::default(), quirks)).await;
        assert_eq!(failing(&verdict), found, "{verdict}");
        assert!(!verdict.allows_lease());
        let line = verdict.summary();
        assert!(
            line.contains("--lease off") && line.contains(found[0]),
            "{line}"
        );
    }
    let ignores = Quirks {
        ignores_checksums: true,
        ..Quirks::default()
    };
    let verdict = verdict(&faulty(Plan::default(), ignores)).await;
    assert_eq!(failing(&verdict), ["part checksums", "kept checksums"]);
    assert!(verdict.allows_lease(), "a lease needs no checksums");
}

#[tokio::test(start_paused = true)]
async fn faults_of_the_way_there_are_not_the_stores() {
    for seed in 0..20 {
        let plan = Plan {
            seed,
            fail_before: 0.1,
            slow_down: 0.1,
            conflict: 0.1,
            fail_after: 0.1,
            ..Plan::default()
        };
        let store = faulty(plan, Quirks::default());
        let verdict = verdict(&store).await;
        assert!(verdict.allows_lease(), "seed {seed}: {verdict}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_is_an_error_and_no_verdict() {
    let store = faulty(Plan::default(), Quirks::default());
    store.set_down(true);
    let store: Arc<dyn Storage> = store;
    let error = probe(&store, 1, |_| {}).await.unwrap_err();
    assert!(matches!(error, StorageError::Transient { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_check_that_hangs_is_named_and_ends_in_its_time() {
    let long = Fault::DelayBefore(CHECK_MAX * 100);
    let store = faulty(Plan::default(), Quirks::default());
    for _ in 0..4 {
        store.next(Operation::BeginUpload, long);
    }
    let store: Arc<dyn Storage> = store;
    let (began, mut rows) = (tokio::time::Instant::now(), Vec::new());
    let error = probe(&store, 1, |row| rows.push(row.to_owned())).await;
    let error = error.unwrap_err().to_string();
    assert!(began.elapsed() <= CHECK_MAX, "{:?}", began.elapsed());
    assert!(error.contains("check uploads: "), "{error}");
    assert!(error.contains("no answer within 10.0 s"), "{error}");
    // What was found before is known by then.
    assert_eq!(rows.len(), 5, "{rows:?}");
}

#[tokio::test]
async fn the_verdict_reads_well() {
    let replaces = Quirks {
        create_replaces: true,
        ..Quirks::default()
    };
    let verdict = verdict(&faulty(Plan::default(), replaces)).await;
    assert_eq!(
        verdict.to_string(),
        "\
access          yes
create-only     no: replaced what was there
races           no: create-only does not work for one alone
strong list     yes
auth            unknown: there are no keys to ask with
part checksums  yes
kept checksums  yes
lists uploads   yes
memory: no lease can be held here (create-only: no: replaced what was there; races: no: \
create-only does not work for one alone)
hint: use another store, or --lease off if you make sure that only one container runs this job"
    );
}
