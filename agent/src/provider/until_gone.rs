//! Gives the machine back and does not rest before it is gone: tries for ever, does not take the
//! provider's word for it, and goes down a ladder where the provider says no: destroy, stop, the
//! end of the container or the machine's own shutdown.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::adapter::Adapter;
use super::api::{Outcome, Presence, Way};
use super::{Kind, PowerOff};

/// Rounds in which the provider denies everything, or says yes and nothing happens, before the last
/// resort: a denial may be a fault of theirs.
const FRUITLESS_MAX: u32 = 3;

/// What one round brought.
enum Round {
    Over(Outcome),
    /// Another may help; not before this.
    Again(Duration),
    /// The provider denies everything, or its yes means nothing.
    Fruitless(String),
}

/// What became of an accepted end.
enum Settled {
    Gone,
    /// Why not, for people.
    Not(String),
}

/// Begins the line on a machine that cannot be given back.
pub const ZOMBIE: &str = "ZOMBIE";

impl Adapter {
    /// Tries for as long as this process lives, until the machine is gone as far as can be known.
    /// Returns if the provider says that it is gone, or if the end of this process is what is left
    /// to do: the caller then exits at once. `say` gets a line for people on what happens; one that
    /// begins with [`ZOMBIE`] is for the webhook. The final record is published before: this call
    /// kills us.
    pub async fn power_off_until_gone(
        &self,
        how: PowerOff,
        mut say: impl FnMut(String),
    ) -> Outcome {
        let own_end = matches!(self.speaker.way(how), Way::Exit);
        if how == PowerOff::None || own_end || self.instance.kind == Kind::Local {
            return self.power_off(how).await;
        }
        let began = Instant::now();
        let mut zombie_at = began + self.pace.zombie;
        let (mut failed, mut fruitless, mut told) = (0u32, 0, false);
        loop {
            let impatient = began.elapsed() > self.pace.patience;
            let mut not_before = Duration::ZERO;
            match self.round(how, impatient || fruitless > 0, &mut say).await {
                Round::Over(outcome) => {
                    // Then this is not running, and yet it does: the address may have been wrong.
                    if outcome == Outcome::AlreadyGone && self.own && self.speaker.is_machine() {
                        self.last_resort(&mut say).await;
                    }
                    return outcome;
                }
                Round::Again(after) => {
                    fruitless = 0;
                    not_before = after.min(self.pace.max * 5);
                }
                Round::Fruitless(why) => {
                    fruitless += 1;
                    if fruitless >= FRUITLESS_MAX {
                        fruitless = 0;
                        if !told {
                            zombie_at = Instant::now() + self.pace.zombie;
                            told = true;
                            say(format!("{ZOMBIE} {}: {why}", self.name()));
                        }
                        if self.own && self.host.is_first() && !self.speaker.is_machine() {
                            say("the end of this process is all that is left".to_owned());
                            return Outcome::Denied(why);
                        }
                        self.last_resort(&mut say).await;
                    }
                }
            }
            if Instant::now() >= zombie_at {
                zombie_at = Instant::now() + self.pace.zombie;
                let minutes = began.elapsed().as_secs() / 60;
                say(format!(
                    "{ZOMBIE} {}: still there {minutes} minutes after its end",
                    self.name()
                ));
            }
            let longest = self.pace.first.saturating_mul(1 << failed.min(16));
            let longest = longest.min(self.pace.max);
            failed = failed.saturating_add(1);
            let jitter = longest.mul_f64(fastrand::f64());
            sleep(not_before.max(self.pace.first) + jitter).await;
        }
    }

    /// One step down the ladder after another until one holds.
    async fn round(&self, how: PowerOff, also_stop: bool, say: &mut impl FnMut(String)) -> Round {
        let mut fruitless = Vec::new();
        let mut again: Option<Duration> = None;
        for rung in [PowerOff::Destroy, PowerOff::Stop] {
            if rung == PowerOff::Destroy && how == PowerOff::Stop {
                continue;
            }
            let outcome = self.power_off(rung).await;
            let word = match rung {
                PowerOff::Stop => "stop",
                _ => "destroy",
            };
            match outcome {
                Outcome::AlreadyGone => {
                    say(format!("{word}: the provider knows no such machine"));
                    return Round::Over(outcome);
                }
                Outcome::Accepted => {
                    say(format!("{word}: accepted"));
                    match self.settled(rung).await {
                        Settled::Gone => return Round::Over(Outcome::Accepted),
                        Settled::Not(why) => {
                            say(format!("{word}: accepted, but {why}"));
                            fruitless.push(format!("{word} was accepted, but {why}"));
                        }
                    }
                    // The first time it may just be slow, and a stop would be less than was asked.
                    if !also_stop {
                        break;
                    }
                }
                Outcome::Denied(why) => {
                    say(format!("{word}: denied: {why}"));
                    fruitless.push(format!("{word} is denied: {why}"));
                }
                Outcome::Retry { after, why } => {
                    say(format!("{word}: {why}"));
                    again = Some(after);
                    if !also_stop {
                        break;
                    }
                }
            }
        }
        match again {
            Some(after) => Round::Again(after),
            None => Round::Fruitless(fruitless.join("; ")),
        }
    }

    /// Waits for what was accepted to come true.
    async fn settled(&self, how: PowerOff) -> Settled {
        let began = Instant::now();
        loop {
            sleep(self.pace.look_every).await;
            let presence = self.look().await.presence;
            let elapsed = began.elapsed();
            match presence {
                Presence::Gone => return Settled::Gone,
                Presence::Stopped if how == PowerOff::Stop => return Settled::Gone,
                // It takes as long as it takes, but not for ever.
                Presence::Leaving if elapsed < self.pace.settle * 10 => {}
                _ if elapsed < self.pace.settle => {}
                // Its word is all that can be had.
                Presence::Unknown if !self.own => return Settled::Gone,
                Presence::Unknown => {
                    let why = "this process lives on and the provider cannot be asked";
                    return Settled::Not(why.to_owned());
                }
                _ => return Settled::Not("the provider still shows the machine".to_owned()),
            }
        }
    }

    /// Without the provider. Returns if that did not help either. A machine without a name may be
    /// anybody's.
    async fn last_resort(&self, say: &mut impl FnMut(String)) {
        if !self.own || self.instance.id.is_none() {
            return;
        }
        if !self.speaker.is_machine() {
            say("ending this container: its disk may go on costing money".to_owned());
            if let Err(why) = self.host.end_container().await {
                say(why);
            }
            return;
        }
        let mut means = self.speaker.shutdown_means().to_owned();
        if let Some(check) = self.speaker.shutdown_check() {
            means = match self.call(&check).await {
                Outcome::Accepted => "which ends it for good".to_owned(),
                Outcome::Denied(why) | Outcome::Retry { why, .. } => format!("{means}; {why}"),
                Outcome::AlreadyGone => means,
            };
        }
        say(format!("shutting this machine down: {means}"));
        match self.host.shut_down().await {
            Ok(()) => sleep(self.pace.settle).await,
            Err(why) => say(why),
        }
    }

    fn name(&self) -> String {
        let id = self.instance.id.as_deref().unwrap_or("of unknown id");
        format!("{} {id}", self.instance.kind)
    }
}
