//! What the switch makes of what it hears; the processes are tried in `tests/it/deadman.rs`.

use std::time::Duration;

use super::watch::{Verdict, Watch};
use super::*;
use crate::clock::Moment;
use crate::provider::{Kind, PowerOff};

fn orders(terminate: Option<PowerOff>, command: Option<&str>) -> Orders {
    let seconds = Duration::from_secs;
    let command = command.map(str::to_owned);
    Orders::new(seconds(10), seconds(60), terminate, None, command)
}

fn at(seconds: u64) -> Moment {
    Moment::since_boot(Duration::from_secs(seconds))
}

/// Ticks until there is a verdict.
fn ticks(watch: &mut Watch, now: u64, most: u64) -> (u64, Option<Verdict>) {
    for n in 0..most {
        if let Some(verdict) = watch.tick(at(now)) {
            return (n + 1, Some(verdict));
        }
    }
    (most, None)
}

#[test]
fn silence_is_counted_in_seconds_that_we_lived_through() {
    let mut watch = Watch::new(orders(None, None));
    // Before its first line the agent may look for its provider.
    assert_eq!(ticks(&mut watch, 0, 59), (59, None));
    assert_eq!(watch.line("beat -"), None);
    // An hour has passed by the clock, asleep: that is not silence.
    assert_eq!(ticks(&mut watch, 3600, 9), (9, None));
    assert_eq!(watch.line("beat -"), None);
    assert_eq!(ticks(&mut watch, 7200, 60), (10, Some(Verdict::Hangs)));
    assert_eq!(watch.line("bye"), Some(Verdict::Bye));
}

#[test]
fn an_agent_that_talks_on_is_ended_after_its_deadline_all_the_same() {
    let mut watch = Watch::new(orders(None, None));
    assert_eq!(watch.line("beat 100000"), None);
    assert_eq!(watch.tick(at(109)), None);
    assert_eq!(watch.tick(at(110)), Some(Verdict::Overdue));
    // A later deadline replaces it.
    assert_eq!(watch.line("beat 200000"), None);
    assert_eq!(watch.tick(at(111)), None);
}

#[test]
fn a_machine_is_never_switched_off_on_a_guess() {
    let unsaid = orders(None, None);
    assert_eq!(unsaid.power_off(Kind::Local), PowerOff::None);
    assert_eq!(unsaid.power_off(Kind::Vast), PowerOff::Destroy);
    let destroy = orders(Some(PowerOff::Destroy), None);
    assert_eq!(destroy.power_off(Kind::Local), PowerOff::None);
    let command = orders(None, Some("true"));
    assert_eq!(command.power_off(Kind::Local), PowerOff::Destroy);
    for how in [PowerOff::None, PowerOff::Stop] {
        assert_eq!(orders(Some(how), None).power_off(Kind::Vast), how);
    }
    let text = serde_json::to_string(&command).unwrap();
    assert_eq!(serde_json::from_str::<Orders>(&text).unwrap(), command);
}
