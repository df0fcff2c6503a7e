//! Keys and names, there and back.

use super::*;

#[test]
fn keys_read_back_and_strangers_do_not() {
    let job = Job::new("sweeps/a/trials/0f").unwrap();
    let nonce = Nonce::from_bits(0xab);
    for (epoch, step) in [
        (1, 0),
        (99_999_999, 9_999_999_999),
        (100_000_000, 10_000_000_000),
    ] {
        let id = CommitId { epoch, step };
        assert_eq!(job.parse_commit(&job.commit(id)), Some(id));
        assert_eq!(
            job.parse_lease(&job.lease(epoch)),
            Some(LeaseKey::Record(epoch))
        );
        assert_eq!(
            job.parse_lease(&job.beat(epoch)),
            Some(LeaseKey::Beat(epoch))
        );
        assert_eq!(
            job.parse_lease(&job.released(epoch)),
            Some(LeaseKey::Released(epoch))
        );
        let key = format!("{}model.safetensors", job.data(id, &nonce));
        assert_eq!(
            job.parse_data(&key),
            Some((id, nonce.clone(), "model.safetensors"))
        );
        assert_eq!(job.parse_control(&job.control(epoch)), Some(epoch));
        assert_eq!(
            job.parse_log_segment(&job.log_segment(7, epoch)),
            Some((7, epoch))
        );
    }
    for stranger in [
        "1.json",
        "00000001.json.bak",
        "+0000001.json",
        "0000000001.json",
        "x",
    ] {
        assert_eq!(
            job.parse_lease(&format!("{}{stranger}", job.leases())),
            None,
            "{stranger}"
        );
    }
    for stranger in [
        "0000000001.json",
        "1-1.json",
        "0000000001-00000001",
        "000000001-000000001.json",
    ] {
        assert_eq!(
            job.parse_commit(&format!("{}{stranger}", job.commits())),
            None,
            "{stranger}"
        );
    }
}

#[test]
fn names_that_are_no_keys_are_refused() {
    for good in ["a", "run-1_b.c", "sweeps/s/trials/t"] {
        assert!(Job::new(good).is_ok(), "{good}");
    }
    let long = "a".repeat(Job::ID_BYTES_MAX + 1);
    for bad in [
        "", "/a", "a/", "a//b", "..", "a/../b", "a b", "ä", "a?b", &long,
    ] {
        assert!(matches!(Job::new(bad), Err(JobError::Name { .. })), "{bad}");
    }
}

#[test]
fn commits_order_by_epoch_then_step() {
    let id = |epoch, step| CommitId { epoch, step };
    assert!(id(2, 10) > id(1, 900));
    assert!(id(2, 11) > id(2, 10));
    let text = serde_json::to_string(&id(3, 500)).unwrap();
    assert_eq!(text, "\"0000000500-00000003\"");
    assert_eq!(serde_json::from_str::<CommitId>(&text).unwrap(), id(3, 500));
    assert!(serde_json::from_str::<CommitId>("\"500-3\"").is_err());
}
