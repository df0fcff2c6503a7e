//! The lines and the JSON of a report.

use super::{Check, Report, Verdict};
use crate::ExitCode;

#[test]
fn a_line_is_one_line_and_the_first_error_is_the_exit() {
    let check = Check::warning("memory", "too\nlittle", "a larger\nmachine");
    assert_eq!(
        check.line(),
        "warning  memory      too little; hint: a larger machine"
    );
    let error = |exit| Check::error("gpu", exit, "none", "another");
    let checks = vec![
        Check::ok("disk", "fine"),
        check,
        error(ExitCode::Device),
        error(ExitCode::Data),
    ];
    let report = Report::new(checks);
    assert_eq!(report.status, Verdict::Error);
    assert_eq!(report.exit(), Some(ExitCode::Device));
    let lines = report.lines();
    assert_eq!(lines[0], "ok       disk        fine");
    assert_eq!(lines[4], "4 checks, 2 errors, 1 warning");
}

#[test]
fn what_is_well_has_no_exit() {
    let report = Report::<ExitCode>::new(vec![Check::ok("disk", "fine")]);
    assert_eq!((report.status, report.exit()), (Verdict::Ok, None));
    let json = serde_json::to_string(&report).unwrap();
    let expected =
        r#"{"status":"ok","checks":[{"check":"disk","status":"ok","found":"fine","hint":null}]}"#;
    assert_eq!(json, expected);
}
