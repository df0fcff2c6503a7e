//! What goes wrong in the simulator besides requests.

use super::*;
use crate::state::StopOrder;

impl World {
    pub(in crate::sim) fn fault(&mut self) {
        if self.now >= self.plan.faults_until {
            return;
        }
        let next = self.random.between(100, self.plan.fault_every * 2);
        self.push(next, Due::Fault);
        let living: Vec<usize> = (0..self.agents.len())
            .filter(|&agent| self.agents[agent].alive)
            .collect();
        if living.is_empty() {
            return;
        }
        let agent = living[self.random.between(0, living.len() as u64 - 1) as usize];
        let machine = self.agents[agent].machine;
        let dice = self.random.between(0, 99);
        self.note(|_| format!("fault {dice} at agent {agent}"));
        match dice {
            0..=19 => {
                let codes = [1, 1, 139, 73, 69, 75, 101];
                let code = codes[self.random.between(0, 6) as usize];
                self.end_trainer(agent, None, Some(code));
            }
            20..=24 => self.end_trainer(agent, Some(9), None),
            25..=32 => {
                if let Some(trainer) = &mut self.agents[agent].trainer {
                    trainer.hung = true;
                }
            }
            33..=37 => {
                if let Some(trainer) = &mut self.agents[agent].trainer {
                    trainer.deaf = true;
                }
            }
            38..=47 => self.kill_agent(agent),
            48..=53 => {
                self.kill_agent(agent);
                if self.plan.limited.is_some() {
                    self.take(machine);
                } else {
                    self.machines[machine] = Machine::default();
                }
            }
            54..=63 => {
                let seconds = self.random.between(1, 20);
                let grace = Duration::from_secs(seconds);
                let source = "SIGTERM".to_owned();
                self.deliver(agent, Event::Notice { source, grace });
                self.push(seconds * 1_000 + 800, Due::KillAgent(agent));
                if self.plan.limited.is_some() {
                    self.push(seconds * 1_000 + 800, Due::PowerOff(machine, None));
                }
            }
            64..=73 if self.plan.freezes => {
                self.agents[agent].frozen_until = self.now + self.random.between(1_000, 60_000);
            }
            74..=79 if self.plan.freezes => {
                self.machines[machine].suspended_until =
                    self.now + self.random.between(1_000, 60_000);
            }
            80..=89 => self.down_until = self.now + self.random.between(1_000, 40_000),
            90..=93 => self.damage(),
            94..=95 => self.revoke(),
            96..=97 => self.deliver(agent, Event::Command(Command::Save)),
            _ => self.deliver(
                agent,
                Event::Command(Command::Stop(StopOrder::new(dice == 99))),
            ),
        }
    }

    /// Spoils the newest checkpoint, as long as all others are good.
    pub(in crate::sim) fn damage(&mut self) {
        let history = self.store.history();
        let commits = &mut self.store.commits;
        if history.len() >= 3 && history.iter().all(|id| !commits[id].damaged) {
            let newest = commits.get_mut(&history[0]);
            newest.expect("it is in the history").damaged = true;
        }
    }

    /// The orchestrator takes the job away, and gives it back when nobody relies on it any more.
    pub(in crate::sim) fn revoke(&mut self) {
        let epoch = self.store.top_epoch();
        if epoch == 0 || self.revoked.is_some() || self.store.is_ended() {
            return;
        }
        let record = LeaseRecord {
            nonce: 0,
            base: self.store.base_after(epoch),
            revoked: true,
        };
        self.store.create_lease(epoch + 1, record);
        self.revoked = Some(epoch + 1);
        self.push(TTL_MS * 2, Due::EndRevocation(epoch + 1));
    }

    pub(in crate::sim) fn kill_agent(&mut self, agent: usize) {
        if self.agents[agent].alive {
            self.note(|_| format!("agent {agent} is killed"));
            self.bury(agent);
        }
    }

    /// The process is gone, and its trainer with it.
    pub(in crate::sim) fn bury(&mut self, agent: usize) {
        let machine = self.agents[agent].machine;
        self.agents[agent].alive = false;
        self.agents[agent].trainer = None;
        self.machines[machine].agent = None;
        if self.plan.limited.is_none() {
            let after = self.random.between(500, 20_000);
            self.push(after, Due::Spawn(machine));
        }
    }
}
