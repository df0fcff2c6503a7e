//! Machines that cost money: their deadlines, the provider, the dead-man's switch.
//!
//! The promise: a machine is off by its deadline and what its switch and its provider may take on
//! top, whatever becomes of the agent, the trainer and the store.

use super::*;
use crate::limits::{Age, Limits};
use crate::provider::PowerOff;
use crate::state::Fault;

/// Between two looks of the switch.
const LOOK_MS: u64 = 1_000;
/// Between two tries of the switch to reach the provider.
const AGAIN_MS: u64 = 5_000;
/// A container's start, before its agent's.
const BOOT_MS: u64 = 3_000;
/// What a refused request, and the clocks' rates, may add to a deadline.
const SLACK_MS: u64 = 20_000;

#[derive(Default)]
pub(super) struct Power {
    started: u64,
    off: bool,
    /// The provider has said yes.
    going: bool,
    /// Seconds without a sign of the agent, as the switch counts them.
    silent_ms: u64,
    /// The switch has seen an agent, and has not heard it say good-bye.
    watched: Option<usize>,
    acts: bool,
    refused: u64,
}

impl World {
    pub(super) fn limits(&self) -> Limits {
        let limited = self.plan.limited.as_ref();
        limited.map_or(LIMITS, |limited| limited.limits)
    }

    pub(super) fn at_end(&self) -> PowerOff {
        match self.plan.limited {
            Some(_) => PowerOff::Destroy,
            None => PowerOff::None,
        }
    }

    pub(super) fn age(&self, machine: usize) -> Age {
        if self.plan.limited.is_none() {
            return Age::default();
        }
        let age = Duration::from_millis(self.now - self.machines[machine].power.started);
        Age {
            wall: age,
            paid: age,
        }
    }

    pub(super) fn is_off(&self, machine: usize) -> bool {
        self.machines[machine].power.off
    }

    pub(super) fn are_all_off(&self) -> bool {
        self.machines.iter().all(|machine| machine.power.off)
    }

    /// A machine begins to cost shortly before its agent starts.
    pub(super) fn start_watch(&mut self, machine: usize, agent_after: u64) {
        if self.plan.limited.is_some() {
            let agent_at = self.now + agent_after;
            let started = agent_at.saturating_sub(BOOT_MS).max(self.now);
            self.machines[machine].power.started = started;
            self.push(started - self.now + LOOK_MS, Due::Watch(machine));
        }
    }

    /// When a machine must be off.
    fn deadline(&self, machine: usize) -> u64 {
        let limits = self.limits();
        let wall = limits.wall.expect("every plan with machines has one");
        let at = self.machines[machine].power.started + wall.as_millis() as u64;
        // What comes on top: the switch waits, the provider refuses.
        let limited = self.plan.limited.as_ref().expect("there are machines");
        let late = limited.hang.as_millis() as u64 + limited.refusals * AGAIN_MS * 2;
        at.max(self.machines[machine].suspended_until) + late + SLACK_MS
    }

    /// One look of the switch.
    pub(super) fn watch(&mut self, machine: usize) {
        if self.is_off(machine) {
            return;
        }
        let deadline = self.deadline(machine);
        self.require(self.now <= deadline, || {
            format!("machine {machine} is on after its deadline")
        });
        self.push(LOOK_MS, Due::Watch(machine));
        let limited = self.plan.limited.as_ref().expect("there are machines");
        let hang = limited.hang.as_millis() as u64;
        let wall = limited.limits.wall.expect("every plan has one");
        if !limited.switch {
            return;
        }
        let suspended = self.now < self.machines[machine].suspended_until;
        if suspended || self.machines[machine].power.acts {
            return;
        }
        let agent = self.machines[machine].agent;
        let lives = agent.is_some_and(|agent| self.now >= self.awake_at(agent));
        let power = &mut self.machines[machine].power;
        power.silent_ms = if lives { 0 } else { power.silent_ms + LOOK_MS };
        let died = power.watched.is_some() && agent.is_none();
        power.watched = agent;
        let late = self.now >= power.started + wall.as_millis() as u64 + hang;
        if died || power.silent_ms >= hang || late {
            power.acts = true;
            self.note(|_| format!("machine {machine}: the switch acts"));
            if let Some(agent) = agent {
                self.kill_agent(agent);
            }
            self.push(0, Due::PowerOff(machine, None));
        }
    }

    /// An agent wants its machine to be taken back.
    pub(super) fn wish_off(&mut self, agent: usize) {
        let machine = self.agents[agent].machine;
        let after = self.random.between(20, 2_000);
        self.push(after, Due::PowerOff(machine, Some(agent)));
    }

    pub(super) fn ask_provider(&mut self, machine: usize, agent: Option<usize>) {
        if self.is_off(machine) {
            return;
        }
        let limited = self.plan.limited.as_ref().expect("there are machines");
        let refuses = self.machines[machine].power.refused < limited.refusals;
        if refuses && self.random.chance(70) {
            self.machines[machine].power.refused += 1;
            return match agent {
                Some(agent) => {
                    let fault = Fault {
                        transient: true,
                        text: "429".to_owned(),
                    };
                    self.deliver(agent, Event::PoweredOff(Err(fault)));
                }
                None => self.push(AGAIN_MS, Due::PowerOff(machine, None)),
            };
        }
        self.machines[machine].power.going = true;
        if let Some(agent) = agent {
            self.deliver(agent, Event::PoweredOff(Ok(())));
        }
        let after = self.random.between(0, 2_000);
        self.push(after, Due::Gone(machine));
    }

    /// The machine is gone, and everything on it.
    pub(super) fn take(&mut self, machine: usize) {
        if self.is_off(machine) {
            return;
        }
        self.note(|_| format!("machine {machine} is off"));
        self.machines[machine].power.off = true;
        if let Some(agent) = self.machines[machine].agent {
            self.kill_agent(agent);
        }
        let Some(limited) = &mut self.plan.limited else {
            return;
        };
        if limited.replacements > 0 {
            limited.replacements -= 1;
            let after = self.random.between(500, 30_000);
            let next = self.machines.len();
            self.machines.push(Machine::default());
            self.push(after, Due::Spawn(next));
            self.start_watch(next, after);
        }
    }

    /// An agent ends by itself only where its machine is off, or about to be taken.
    pub(super) fn check_exit(&mut self, agent: usize) {
        if self.plan.limited.is_none() {
            return;
        }
        let machine = self.agents[agent].machine;
        let ending = self.agents[agent].state.ending.as_ref();
        let noticed = ending.is_some_and(|ending| ending.noticed.is_some());
        let off = self.is_off(machine) || self.machines[machine].power.going;
        self.require(off || noticed, || {
            format!("agent {agent} leaves machine {machine} on")
        });
        // It has said good-bye; whoever gave notice takes the machine.
        self.machines[machine].power.watched = None;
        if noticed {
            self.take(machine);
        }
    }

    /// The newest checkpoint on the first machine's disk, and in the store.
    pub(in crate::sim) fn saved_and_published(&self) -> (u64, u64) {
        let saved = self.machines[0].disk.last().copied();
        let published = self.store.history().first().map(|(_, step)| *step);
        (saved.unwrap_or(0), published.unwrap_or(0))
    }
}
