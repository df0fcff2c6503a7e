//! A trainer of the simulator: it makes steps, saves, takes signals, ends.

use protocol::{Event as Report, Record};

use super::*;

impl World {
    pub(in crate::sim) fn start_trainer(&mut self, agent: usize) {
        let step = self.disk(agent).last().copied().unwrap_or(0);
        let holds_top = self.agents[agent].state.epoch() == Some(self.store.top_epoch());
        let newest = self.store.newest_good().map_or(0, |(_, step)| step);
        self.require(!holds_top || step >= newest, || {
            format!("agent {agent} starts at step {step}, the store has {newest}")
        });
        let others: Vec<usize> = (0..self.agents.len())
            .filter(|&other| self.agents[other].trainer.is_some())
            .collect();
        let strict = self.plan.lease == LeaseMode::Strict && !self.plan.freezes;
        self.require(!strict || others.is_empty(), || {
            format!("agent {agent} starts while those of {others:?} train")
        });
        self.attempts += 1;
        self.generations += 1;
        let generation = self.generations;
        self.agents[agent].trainer = Some(Trainer {
            generation,
            step,
            started: false,
            hung: false,
            deaf: false,
            ending: false,
        });
        self.deliver(agent, Event::Started(Ok(1)));
        let after = self.random.between(100, 2_000);
        self.push(after, Due::Trainer(agent, generation, Life::Begin));
    }

    /// One turn of a trainer's life.
    pub(in crate::sim) fn live(&mut self, agent: usize, generation: u64, life: Life) {
        let suspended_until = self.machines[self.agents[agent].machine].suspended_until;
        let Plan {
            total,
            step_ms,
            checkpoint_every,
            save_ms,
            ..
        } = self.plan;
        let Some(trainer) = &mut self.agents[agent].trainer else {
            return;
        };
        if trainer.generation != generation || trainer.hung {
            return;
        }
        if self.now < suspended_until {
            let after = suspended_until - self.now;
            return self.push(after, Due::Trainer(agent, generation, life));
        }
        match life {
            Life::Begin => {
                trainer.started = true;
                let report = started(total, trainer.step);
                self.deliver(agent, Event::Record(report));
                self.push(0, Due::Trainer(agent, generation, Life::Advance));
            }
            Life::Advance if trainer.ending => {}
            Life::Advance => {
                let before = trainer.step;
                trainer.step = (before + TICK_MS.div_ceil(step_ms)).min(total);
                let step = trainer.step;
                trainer.ending = step == total;
                self.deliver(agent, Event::Record(made(step)));
                let exit = (step == total).then_some(0);
                if exit.is_some() || before / checkpoint_every < step / checkpoint_every {
                    let save = Life::Save { step, exit };
                    self.push(save_ms, Due::Trainer(agent, generation, save));
                }
                self.push(TICK_MS, Due::Trainer(agent, generation, Life::Advance));
            }
            Life::Save { step, exit } => {
                let disk = self.disk(agent);
                disk.insert(step);
                while disk.len() > KEPT_ON_DISK {
                    disk.pop_first();
                }
                let after = self.random.between(0, 500);
                self.push(after, Due::Deliver(agent, Event::CheckpointFound { step }));
                if exit.is_some() {
                    self.end_trainer(agent, None, exit);
                }
            }
        }
    }

    pub(in crate::sim) fn signal(&mut self, agent: usize, signal: Signal) {
        let save_ms = self.plan.save_ms;
        let Some(trainer) = &mut self.agents[agent].trainer else {
            return;
        };
        if !trainer.started {
            return self.end_trainer(agent, Some(15), None);
        }
        if trainer.deaf || trainer.hung || trainer.ending {
            return;
        }
        let (generation, step) = (trainer.generation, trainer.step);
        trainer.ending = signal == Signal::Terminate;
        let exit = (signal == Signal::Terminate).then_some(75);
        let save = Life::Save { step, exit };
        self.push(save_ms, Due::Trainer(agent, generation, save));
    }

    pub(in crate::sim) fn end_trainer(
        &mut self,
        agent: usize,
        signal: Option<i32>,
        code: Option<i32>,
    ) {
        if self.agents[agent].trainer.take().is_some() {
            let out_of_memory = signal == Some(9) && self.random.chance(10);
            let local = self.disk(agent).last().copied();
            let exit = Exit {
                code,
                signal,
                out_of_memory,
                local,
            };
            self.push(50, Due::Deliver(agent, Event::Exited(exit)));
        }
    }
}

fn record(event: Report) -> Record {
    Record {
        time: String::new(),
        elapsed_s: 0.0,
        event,
    }
}

pub(in crate::sim) fn started(max_iters: u64, step: u64) -> Record {
    record(Report::Started {
        version: String::new(),
        pid: 1,
        config: String::new(),
        config_hash: String::new(),
        engine: String::new(),
        device: String::new(),
        threads: 1,
        parameters: 1,
        tokens_per_iteration: 1,
        max_iters,
        resumed_from: (step > 0).then_some(step),
        startup_ms: Vec::new(),
    })
}

pub(in crate::sim) fn made(step: u64) -> Record {
    record(Report::Step {
        step: step - 1,
        loss: 1.0,
        lr: 1.0,
        grad_norm: 1.0,
        step_ms: 1.0,
        tokens_per_second: 1.0,
        mfu: None,
    })
}
