//! Tests of `reaper` that need no process of their own; `tests/it/reaper.rs` has the others.

use super::*;

#[tokio::test]
async fn a_second_interrupt_soon_after_means_now() {
    let mut signals = Signals::listen().unwrap();
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    for (number, seconds, request) in [
        (Signal::INT, 0, Request::Stop(Signal::INT)),
        (Signal::INT, 3, Request::Stop(Signal::INT)),
        (Signal::TERM, 4, Request::Stop(Signal::TERM)),
        (Signal::INT, 5, Request::StopNow),
        (Signal::XCPU, 5, Request::Stop(Signal::XCPU)),
        (Signal::USR2, 5, Request::Forward(Signal::USR2)),
    ] {
        assert_eq!(signals.request(number, at(seconds)), request);
    }
}
