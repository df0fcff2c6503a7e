//! Tests of `reaper` that need no process of their own; `tests/it/reaper.rs` has the others.

use super::*;

#[test]
fn what_a_provider_may_send_asks_for_the_end_and_the_rest_is_the_trainers() {
    for number in [
        Signal::TERM,
        Signal::INT,
        Signal::HUP,
        Signal::USR1,
        Signal::XCPU,
    ] {
        assert_eq!(request(number), Request::Stop(number));
    }
    for number in [Signal::USR2, Signal::QUIT] {
        assert_eq!(request(number), Request::Forward(number));
    }
}
