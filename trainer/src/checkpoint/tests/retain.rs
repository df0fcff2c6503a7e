//! Which checkpoints stay.

use super::super::retain::superfluous;
use super::*;

#[test]
fn the_newest_and_the_best_stay() {
    type Whole<'a> = &'a [(u64, Option<f64>)];
    let none = None;
    let nan = Some(f64::NAN);
    #[rustfmt::skip]
    let cases: [(&str, Whole<'_>, u64, u64, &[u64]); 12] = [
        ("alone", &[(1, none)], 1, 1, &[]),
        ("newest", &[(3, none), (2, none), (1, none)], 3, 1, &[2, 1]),
        ("two", &[(3, none), (2, none), (1, none)], 3, 2, &[1]),
        ("0 means 1", &[(2, none), (1, none)], 2, 0, &[1]),
        ("all", &[(2, none), (1, none)], 2, u64::MAX, &[]),
        ("best", &[(3, Some(2.0)), (2, Some(3.0)), (1, Some(1.0))], 3, 1, &[2]),
        ("newest is best", &[(3, Some(1.0)), (2, Some(2.0)), (1, none)], 3, 1, &[2, 1]),
        ("first of equals", &[(3, none), (2, Some(1.0)), (1, Some(1.0))], 3, 1, &[2]),
        ("NaN is not best", &[(3, Some(1.0)), (2, nan), (1, nan)], 3, 1, &[2, 1]),
        ("infinite is a loss", &[(2, none), (1, Some(f64::INFINITY))], 2, 1, &[]),
        ("beyond is not judged", &[(9, none), (3, none), (2, none), (1, none)], 3, 2, &[1]),
        ("nor best", &[(9, Some(0.1)), (3, none), (2, Some(1.0)), (1, none)], 3, 1, &[1]),
    ];
    for (name, whole, written, keep_last, expected) in cases {
        assert_eq!(superfluous(whole, written, keep_last), expected, "{name}");
    }
}

#[test]
fn pruning_leaves_what_it_cannot_judge() {
    let (_folder, run) = run();
    let mut with_loss = snapshot(1, 1);
    with_loss.val_loss = Some(1.0);
    save(&run, 9, &with_loss);
    for step in 2..=4 {
        save(&run, 9, &snapshot(step, 1));
    }
    fs::remove_file(run.checkpoint(2).join(RunDir::MODEL)).unwrap();
    fs::create_dir(run.checkpoints().join("mine")).unwrap();
    fs::write(run.checkpoints().join("step_5"), "").unwrap();
    save(&run, 1, &snapshot(5, 1));
    let left = [
        "mine",
        "step_0000000001",
        "step_0000000002",
        "step_0000000005",
        "step_5",
    ];
    assert_eq!(names(&run), left);

    let listed = list(&run).unwrap();
    let steps: Vec<_> = listed.iter().map(|listed| listed.step).collect();
    assert_eq!(steps, [5, 2, 1]);
    assert!(listed[1].manifest.is_err());
    assert_eq!(best(&listed).unwrap().step, 1);
    assert!(is_same(&load_best(&run).unwrap().unwrap(), &with_loss));
}

/// Resumed from step 10 because 20 is damaged inside: 20 looks whole and is newer, and yet it must
/// not cost the one that was just written.
#[test]
fn a_damaged_newer_one_does_not_push_out_the_one_just_written() {
    let (_folder, run) = run();
    save(&run, 9, &snapshot(10, 1));
    save(&run, 9, &snapshot(20, 1));
    let model = run.checkpoint(20).join(RunDir::MODEL);
    let mut bytes = fs::read(&model).unwrap();
    bytes[100] ^= 1;
    fs::write(&model, bytes).unwrap();
    save(&run, 1, &snapshot(15, 2));
    assert_eq!(names(&run), ["step_0000000015", "step_0000000020"]);
    save(&run, 1, &snapshot(20, 2));
    assert_eq!(names(&run), ["step_0000000020"]);
    assert!(is_same(&newest(&run).unwrap(), &snapshot(20, 2)));
}

#[test]
fn without_a_validation_loss_there_is_no_best() {
    let (_folder, run) = run();
    assert!(load_best(&run).unwrap().is_none());
    let mut nan = snapshot(1, 1);
    nan.val_loss = Some(f64::NAN);
    save(&run, 1, &nan);
    assert!(load_best(&run).unwrap().is_none());
    assert_eq!(newest(&run).unwrap().manifest.val_loss, None);
}

#[test]
fn clearing_deletes_every_checkpoint_and_nothing_else() {
    let (_folder, run) = run();
    save(&run, 9, &snapshot(1, 1));
    save(&run, 9, &snapshot(2, 1));
    fs::remove_file(run.checkpoint(1).join(RunDir::MANIFEST)).unwrap();
    fs::create_dir(run.checkpoints().join("mine")).unwrap();
    let mut checkpoints = Checkpoints::open(run.clone(), 1).unwrap();
    checkpoints.clear().unwrap();
    assert_eq!(names(&run), ["mine"]);
    assert!(newest(&run).is_none());
}

#[test]
fn a_leftover_of_an_earlier_deletion_does_not_stop_the_next() {
    let (_folder, run) = run();
    save(&run, 1, &snapshot(1, 1));
    let mut checkpoints = Checkpoints::open(run.clone(), 1).unwrap();
    fs::create_dir_all(run.checkpoints().join(".tmp-delete-old-step_0000000001/x")).unwrap();
    fs::create_dir_all(run.checkpoints().join(".tmp-old-step_0000000001/x")).unwrap();
    hand_over(&mut checkpoints, snapshot(1, 2));
    let outcomes = checkpoints.finish();
    assert!(
        matches!(outcomes.as_slice(), [SaveOutcome::Written { step: 1, .. }]),
        "{outcomes:?}"
    );
    assert_eq!(names(&run), ["step_0000000001"]);
    assert!(is_same(&newest(&run).unwrap(), &snapshot(1, 2)));
}
