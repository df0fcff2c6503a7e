//! What counts of a file of events, and its CSV.

use super::*;

fn line(event: &str) -> String {
    format!("{{\"time\":\"2026-01-02T03:04:05Z\",\"elapsed_s\":1.0,{event}}}\n")
}

fn step(step: u64, loss: &str) -> String {
    line(&format!(
        "\"event\":\"step\",\"step\":{step},\"loss\":{loss},\"lr\":0.5,\"grad_norm\":2.0,\
         \"step_ms\":1.0,\"tokens_per_second\":10.0"
    ))
}

fn eval(step: u64, val: f64) -> String {
    line(&format!(
        "\"event\":\"eval\",\"step\":{step},\"train_loss\":1.5,\"val_loss\":{val},\"best\":true,\
         \"eval_ms\":1.0"
    ))
}

fn started(from: Option<u64>) -> String {
    let from = from.map_or(String::new(), |from| format!(",\"resumed_from\":{from}"));
    line(&format!(
        "\"event\":\"started\",\"version\":\"0\",\"pid\":1,\"config\":\"c\",\"config_hash\":\"h\",\
         \"engine\":\"e\",\"device\":\"cpu\",\"threads\":1,\"parameters\":1,\
         \"tokens_per_iteration\":1,\"max_iters\":9{from}"
    ))
}

#[test]
fn what_a_resume_or_a_rollback_went_back_on_is_left_out() {
    let lines = [
        started(None),
        eval(0, 4.0),
        step(0, "3.0"),
        step(1, "2.9"),
        step(2, "2.8"),
        eval(3, 2.7),
        started(Some(1)),
        step(1, "2.5"),
        step(2, "2.4"),
        step(3, "2.3"),
        eval(3, 2.2),
        // A rollback to step 2.
        step(2, "null"),
        "{\"torn".to_owned(),
    ];
    let history = History::parse(&lines.concat());
    assert_eq!(history.steps.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
    assert!(history.steps[&2].loss.is_nan());
    assert_eq!(history.steps[&1].loss, 2.5);
    assert_eq!(history.steps[&0].time, 1_767_323_045.0);
    assert_eq!(history.evaluations.len(), 1);
    expect_test::expect![[r#"
        step,loss,lr,grad_norm,tokens_per_second,mfu,eval_train_loss,eval_val_loss
        0,3,0.5,2,10,,1.5,4
        1,2.5,0.5,2,10,,,
        2,,0.5,2,10,,,
    "#]]
    .assert_eq(&history.csv());
}
