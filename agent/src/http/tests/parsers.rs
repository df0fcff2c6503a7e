//! Every parser of what strangers send, given anything: no panic, and sense where there is some.

use axum::http::HeaderMap;
use proptest::prelude::*;

use crate::http::access::{Access, Scope};
use crate::http::control;
use crate::http::files::safe;
use crate::http::logs::cursor;
use crate::logs::first_seq;
use crate::metrics::Format;
use crate::orders::{LimitsBody, StopBody};

fn json() -> HeaderMap {
    HeaderMap::from_iter([(
        "content-type".parse().unwrap(),
        "application/json".parse().unwrap(),
    )])
}

proptest! {
    #[test]
    fn a_cursor_is_a_number_or_none(text in ".*") {
        cursor(&text);
    }

    #[test]
    fn a_cursor_reads_back(attempt: u32, line: u32) {
        let seq = first_seq(attempt) + u64::from(line);
        prop_assert_eq!(cursor(&seq.to_string()), Some(seq));
        prop_assert_eq!(cursor(&format!("{attempt}.{line}")), Some(seq));
    }

    #[test]
    fn a_body_is_a_command_or_a_problem(body: Vec<u8>) {
        for problem in [
            control::read::<StopBody>(&json(), &body)
                .and_then(|body| body.order().map_err(control::invalid)).err(),
            control::read::<LimitsBody>(&json(), &body)
                .and_then(|body| body.change().map_err(control::invalid)).err(),
        ].into_iter().flatten() {
            prop_assert!((400..500).contains(&problem.status));
        }
    }

    #[test]
    fn numbers_of_a_body_are_in_bounds(seconds: f64, dollars: f64) {
        let body = serde_json::json!({"max_wall_seconds": seconds, "budget_usd": dollars});
        let change = control::read::<LimitsBody>(&json(), body.to_string().as_bytes())
            .and_then(|body| body.change().map_err(control::invalid));
        // JSON has no numbers that are not finite: they are null, which changes nothing.
        let fits = |value: f64, most: f64| !value.is_finite() || (0.0..=most).contains(&value);
        let sound = fits(seconds, 315_360_000.0) && fits(dollars, 1e9);
        prop_assert_eq!(change.is_ok(), sound);
    }

    #[test]
    fn a_token_is_known_or_refused(token in "[ -~]*") {
        let access = Access::new(None, Some("control-token-0123456789")).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("authorization", token.parse().unwrap());
        let knows = token.split_once(' ').is_some_and(|(scheme, rest)| {
            scheme.eq_ignore_ascii_case("bearer") && rest.trim() == "control-token-0123456789"
        });
        prop_assert_eq!(access.check(&headers, Scope::Control).is_ok(), knows);
    }

    #[test]
    fn a_host_and_an_origin_are_ours_or_refused(host in "[ -~]*", origin in "[ -~]*") {
        let mut headers = HeaderMap::new();
        headers.insert("host", host.parse().unwrap());
        headers.insert("origin", origin.parse().unwrap());
        Access::default().check(&headers, Scope::Read).ok();
    }

    #[test]
    fn a_path_that_is_shown_leads_nowhere_else(path in "[a./\\\\~\0]*") {
        if safe::is_shown(&path) {
            prop_assert!(path.split('/').all(|word| !word.is_empty() && !word.starts_with('.')));
        }
    }

    #[test]
    fn any_accept_has_a_format(accept in ".*") {
        Format::wanted(&accept);
    }
}
