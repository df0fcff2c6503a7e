//! Time, machines, trainers and faults; the promises are checked where they could be broken.

mod faults;
mod plan;
mod power;
mod trainer;

pub(super) use plan::{LIMITS, Plan};
pub(super) use trainer::{made, started};

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::operation::{Kind, Operation, Reply, Request};
use super::random::Random;
use super::store::{CommitId, LeaseRecord, Store, Top};
use crate::clock::Moment;
use crate::error::ExitStatus;
use crate::state::{
    Action, Command, Event, Exit, Lease, LeaseMode, Reason, Settings, Signal, Stage, State,
};
use crate::supervisor::step;

pub(super) const TTL_MS: u64 = 12_000;
pub(super) const RHO: f64 = 0.01;
const SLACK_MS: u64 = 1_000;
const TICK_MS: u64 = 500;
/// After the faults have stopped, the job must end within this.
const PATIENCE_MS: u64 = 20 * 60_000;
const KEPT_ON_DISK: usize = 3;

/// What happens next.
enum Due {
    Tick(usize),
    Deliver(usize, Event),
    /// A request reaches the store; `None` = nobody hears of its result.
    Apply(Option<(usize, u64)>, Request),
    Reply(usize, Option<Reply>),
    Trainer(usize, u64, Life),
    Fault,
    Spawn(usize),
    KillAgent(usize),
    EndRevocation(u64),
    /// The dead-man's switch of a machine looks.
    Watch(usize),
    /// Somebody on this machine asks the provider to take it back: the agent, or the switch.
    PowerOff(usize, Option<usize>),
    Gone(usize),
}

/// A trainer's own doings.
#[derive(Clone, Copy, Debug)]
pub(in crate::sim) enum Life {
    Begin,
    Advance,
    Save { step: u64, exit: Option<i32> },
}

struct Trainer {
    generation: u64,
    step: u64,
    started: bool,
    hung: bool,
    deaf: bool,
    ending: bool,
}

#[derive(Default)]
struct Machine {
    disk: BTreeSet<u64>,
    /// Of all claims that were made here, where there is never more than one agent.
    nonces: BTreeSet<u64>,
    agent: Option<usize>,
    suspended_until: u64,
    power: power::Power,
}

/// One process of the agent.
pub(super) struct Agent {
    pub(super) machine: usize,
    pub(super) state: State,
    alive: bool,
    frozen_until: u64,
    offset_ms: u64,
    rate_ppm: u64,
    pub(super) commit_until: Option<Moment>,
    pub(super) nonce: u64,
    pub(super) seen: Option<Top>,
    pub(super) parent: Option<CommitId>,
    trainer: Option<Trainer>,
}

pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) random: Random,
    pub(super) now: u64,
    queue: BTreeMap<(u64, u64), Due>,
    count: u64,
    pub(super) store: Store,
    pub(super) agents: Vec<Agent>,
    machines: Vec<Machine>,
    pub(super) operations: BTreeMap<usize, Operation>,
    begun: usize,
    down_until: u64,
    revoked: Option<u64>,
    aloud: bool,
    pub(super) trace: Vec<String>,
    pub(super) attempts: u32,
    generations: u64,
    failed: bool,
    violated: Option<String>,
}

impl World {
    pub(super) fn new(plan: Plan, seed: u64, aloud: bool) -> Self {
        let mut world = Self {
            random: Random::new(seed),
            now: 0,
            queue: BTreeMap::new(),
            count: 0,
            store: Store::default(),
            agents: Vec::new(),
            machines: Vec::new(),
            operations: BTreeMap::new(),
            begun: 0,
            down_until: 0,
            revoked: None,
            aloud,
            trace: Vec::new(),
            attempts: 0,
            generations: 0,
            failed: false,
            violated: None,
            plan,
        };
        for machine in 0..world.plan.agents as usize {
            world.machines.push(Machine::default());
            let after = world.random.between(0, 2_000);
            world.push(after, Due::Spawn(machine));
            world.start_watch(machine, after);
        }
        if world.plan.faults_until > 0 {
            world.push(1_000, Due::Fault);
        }
        world
    }

    /// Runs the schedule to the end of the job.
    pub(super) fn run(&mut self) -> Result<(), String> {
        // A job that is ended at its limits goes on by further machines.
        let work = self.plan.total * self.plan.step_ms;
        let more = self.plan.limited.as_ref().map_or(0, |_| 2 * work);
        let end = self.plan.faults_until + PATIENCE_MS + more;
        while let Some(((time, _), due)) = self.queue.pop_first() {
            self.now = time;
            self.happen(due);
            if let Some(violated) = self.violated.take() {
                return Err(violated);
            }
            let over = if self.plan.limited.is_some() {
                self.are_all_off()
            } else {
                let over = self.store.is_ended() || self.failed;
                over && !self.agents.iter().any(|agent| agent.alive)
            };
            if over {
                return Ok(());
            }
            if self.now > end {
                return Err("the job does not come to its end".to_owned());
            }
        }
        Err("nothing happens any more".to_owned())
    }

    fn push(&mut self, after: u64, due: Due) {
        self.count += 1;
        self.queue.insert((self.now + after, self.count), due);
    }

    pub(super) fn deliver(&mut self, agent: usize, event: Event) {
        self.push(0, Due::Deliver(agent, event));
    }

    pub(super) fn note(&mut self, text: impl FnOnce(&Self) -> String) {
        if self.aloud {
            let line = format!("{:>8} ms  {}", self.now, text(self));
            self.trace.push(line);
        }
    }

    fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.violated.is_none() {
            self.violated = Some(what());
        }
    }

    /// What an agent's own clock shows.
    pub(super) fn clock(&self, agent: usize) -> Moment {
        let agent = &self.agents[agent];
        let micros = agent.offset_ms * 1_000 + self.now * agent.rate_ppm / 1_000;
        Moment::since_boot(Duration::from_micros(micros))
    }

    /// When an agent can act again.
    fn awake_at(&self, agent: usize) -> u64 {
        let Agent {
            machine,
            frozen_until,
            ..
        } = self.agents[agent];
        frozen_until.max(self.machines[machine].suspended_until)
    }

    fn happen(&mut self, due: Due) {
        let (Due::Tick(agent) | Due::Deliver(agent, _)) = due else {
            return match due {
                Due::Reply(operation, reply) => self.reply(operation, reply),
                Due::Apply(heard, request) => self.apply(heard, request),
                Due::Trainer(agent, generation, life) => self.live(agent, generation, life),
                Due::Fault => self.fault(),
                Due::Spawn(machine) => self.spawn(machine),
                Due::KillAgent(agent) => self.kill_agent(agent),
                Due::EndRevocation(epoch) => {
                    self.store.release(epoch);
                    self.revoked = None;
                }
                Due::Watch(machine) => self.watch(machine),
                Due::PowerOff(machine, agent) => self.ask_provider(machine, agent),
                Due::Gone(machine) => self.take(machine),
                Due::Tick(_) | Due::Deliver(..) => {}
            };
        };
        if !self.agents[agent].alive {
            return;
        }
        let awake_at = self.awake_at(agent);
        if self.now < awake_at {
            self.push(awake_at - self.now, due);
            return;
        }
        match due {
            Due::Deliver(agent, event) => self.act(agent, event),
            _ => {
                self.act(agent, Event::Tick);
                self.push(TICK_MS, Due::Tick(agent));
            }
        }
    }

    /// Gives an agent an event and carries out what it wants done.
    fn act(&mut self, agent: usize, event: Event) {
        let now = self.clock(agent);
        let told = self.aloud.then(|| format!("{event:?}"));
        let actions = step(&mut self.agents[agent].state, event, now);
        if let Some(told) = told.filter(|told| told != "Tick" || !actions.is_empty()) {
            self.note(|_| format!("agent {agent}: {told} -> {actions:?}"));
        }
        self.check_holders();
        for action in actions {
            self.check_action(agent, &action);
            self.carry_out(agent, action);
        }
    }

    /// Never two that may rely on the lease.
    fn check_holders(&mut self) {
        let holders: Vec<usize> = (0..self.agents.len())
            .filter(|&agent| {
                let it = &self.agents[agent];
                let valid = it
                    .state
                    .valid_until()
                    .is_some_and(|u| self.clock(agent) < u);
                let leaves = it.state.ending.as_ref();
                let leaves = leaves.is_some_and(|ending| ending.stage >= Stage::Releasing);
                it.alive && valid && !leaves && self.now >= self.awake_at(agent)
            })
            .collect();
        self.require(holders.len() <= 1, || {
            format!("agents {holders:?} all rely on the lease")
        });
    }

    /// Who has lost the lease only stops.
    fn check_action(&mut self, agent: usize, action: &Action) {
        let state = &self.agents[agent].state;
        let lost = state.ending.as_ref().is_some_and(|e| e.reason.is_loss());
        let writes = matches!(
            action,
            Action::Claim { .. }
                | Action::Beat
                | Action::Restore
                | Action::Start { .. }
                | Action::Publish { .. }
                | Action::Prune
                | Action::WriteStatus
                | Action::WriteLogs { .. }
                | Action::WriteFinal(_)
                | Action::Release
                | Action::CommitUntil(Some(_))
        );
        let held = matches!(state.lease, Lease::Held(_));
        self.require(!(lost && writes), || {
            format!("agent {agent} has lost the lease and does {action:?}")
        });
        let needs = matches!(
            action,
            Action::Publish { .. } | Action::Prune | Action::Start { .. } | Action::WriteFinal(_)
        );
        self.require(held || !needs, || {
            format!("agent {agent} has no lease and does {action:?}")
        });
    }

    fn carry_out(&mut self, agent: usize, action: Action) {
        let epoch = self.agents[agent].state.epoch().unwrap_or(0);
        let kind = match action {
            Action::Probe => Kind::Probe,
            Action::Look => Kind::Look,
            Action::Claim { after } => Kind::Claim { after },
            Action::Beat => Kind::Beat {
                epoch,
                failed: false,
            },
            Action::Restore => Kind::Restore {
                epoch,
                left: Vec::new(),
                bad: 0,
                newest: None,
            },
            Action::Publish { epoch, step } => Kind::Publish {
                epoch,
                step,
                tries: 0,
            },
            Action::Prune => Kind::Prune {
                epoch,
                left: Vec::new(),
            },
            Action::WriteStatus => Kind::Status,
            Action::WriteLogs { .. } => Kind::Logs,
            Action::WriteFinal(reason) => {
                let completed = reason == Reason::Completed;
                Kind::Final { epoch, completed }
            }
            Action::Release => Kind::Release { epoch },
            Action::CancelRestore => return self.cancel(agent, false),
            Action::CancelPublish => return self.cancel(agent, true),
            Action::CommitUntil(until) => {
                self.agents[agent].commit_until = until;
                return;
            }
            Action::Start { .. } => return self.start_trainer(agent),
            Action::Signal(signal) => return self.signal(agent, signal),
            Action::KillGroup => return self.end_trainer(agent, Some(9), None),
            Action::Say(..) | Action::Alert(_) | Action::Drill(_) | Action::Renew(_) => return,
            Action::PowerOff(_) => return self.wish_off(agent),
            Action::Exit(status) => return self.exit(agent, status),
        };
        self.begin(agent, kind);
    }

    /// Sends a request: it may be lost, be slow, or land after its sender has given up.
    pub(super) fn send(&mut self, operation: usize, request: Request) {
        let limit = match request {
            Request::Transfer { .. } => u64::MAX / 4,
            _ => TTL_MS / 6,
        };
        let rough = self.now < self.plan.faults_until;
        let delay = |world: &mut Self| {
            if rough && world.random.chance(world.plan.slow_percent) {
                world.random.between(200, 8_000)
            } else {
                world.random.between(5, 150)
            }
        };
        let there = match request {
            Request::Transfer { ms } => ms,
            _ => delay(self),
        };
        let lost = rough && self.random.chance(self.plan.lost_percent);
        let back = delay(self);
        let heard = there + back < limit && !lost;
        if heard {
            self.push(there, Due::Apply(Some((operation, back)), request));
        } else {
            // Half of the lost ones were lost on their way back.
            if !lost || self.random.chance(50) {
                self.push(there, Due::Apply(None, request));
            }
            self.push(limit.min(10_000), Due::Reply(operation, None));
        }
    }

    fn apply(&mut self, heard: Option<(usize, u64)>, request: Request) {
        let up = self.now >= self.down_until;
        if up {
            self.check_request(&request);
        }
        let reply = up.then(|| request.apply(&mut self.store));
        if let Some((operation, back)) = heard {
            self.push(back, Due::Reply(operation, reply));
        }
    }

    fn reply(&mut self, operation: usize, reply: Option<Reply>) {
        let Some(agent) = self.operations.get(&operation).map(|o| o.agent) else {
            return; // cancelled
        };
        if !self.agents[agent].alive {
            self.operations.remove(&operation);
            return;
        }
        let awake_at = self.awake_at(agent);
        if self.now < awake_at {
            self.push(awake_at - self.now, Due::Reply(operation, reply));
            return;
        }
        self.advance_operation(operation, reply);
    }

    /// What the store must never be asked to do.
    fn check_request(&mut self, request: &Request) {
        match request {
            Request::Delete { id } => {
                let history = self.store.history();
                let kept = history.iter().take(2).any(|kept| kept == id);
                let good = self.store.newest_good() == Some(*id);
                self.require(!kept && !good, || {
                    format!("{id:?} is deleted, of the history {history:?}")
                });
            }
            Request::CreateFinal { epoch, completed } if *completed => {
                let newest = self.store.history_of(*epoch).first().copied();
                let total = self.plan.total;
                self.require(newest.is_some_and(|(_, step)| step == total), || {
                    format!("completed with {newest:?} as the last checkpoint of {total}")
                });
            }
            _ => {}
        }
    }

    pub(super) fn disk(&mut self, agent: usize) -> &mut BTreeSet<u64> {
        let machine = self.agents[agent].machine;
        &mut self.machines[machine].disk
    }

    pub(super) fn is_dead(&self, agent: usize, nonce: u64) -> bool {
        let machine = self.agents[agent].machine;
        self.machines[machine].nonces.contains(&nonce)
    }

    pub(super) fn remember(&mut self, agent: usize, nonce: u64) {
        let machine = self.agents[agent].machine;
        self.machines[machine].nonces.insert(nonce);
    }

    fn spawn(&mut self, machine: usize) {
        let limited = self.plan.limited.is_some();
        let over = !limited && (self.store.is_ended() || self.failed);
        if over || self.machines[machine].agent.is_some() || self.is_off(machine) {
            return;
        }
        let settings = Settings {
            lease: self.plan.lease,
            on_lost: self.plan.on_lost,
            takes_keys: false,
            again: false,
            ttl: Duration::from_millis(TTL_MS),
            kill_budget: Duration::from_millis(1_500),
            rho: RHO,
            restarts_max: 5,
            backoff_first: Duration::from_millis(500),
            backoff_max: Duration::from_secs(5),
            start_patience: Duration::from_secs(20),
            save_patience: Duration::from_secs(5),
            store_patience: Duration::from_secs(120),
            status_every: Duration::from_secs(2),
            logs_every: Duration::from_secs(5),
            limits: self.limits(),
            age: self.age(machine),
            price: None,
            power_off: self.at_end(),
        };
        let agent = self.agents.len();
        let offset_ms = self.random.between(1, 1_000_000_000);
        // Rates differ by less than rho, which is all that is promised of clocks.
        let rate_ppm = self.random.between(996_000, 1_004_000);
        self.agents.push(Agent {
            machine,
            state: State::new(settings, Moment::since_boot(Duration::ZERO)),
            alive: true,
            frozen_until: 0,
            offset_ms,
            rate_ppm,
            commit_until: None,
            nonce: 0,
            seen: None,
            parent: None,
            trainer: None,
        });
        let now = self.clock(agent);
        let settings = self.agents[agent].state.settings.clone();
        self.agents[agent].state = State::new(settings, now);
        self.machines[machine].agent = Some(agent);
        self.note(|_| format!("machine {machine} starts agent {agent}"));
        self.push(0, Due::Tick(agent));
    }

    fn exit(&mut self, agent: usize, status: ExitStatus) {
        self.note(|_| format!("agent {agent} exits: {status}"));
        let trains = self.agents[agent].trainer.is_some();
        self.require(!trains, || {
            format!("agent {agent} leaves its trainer behind")
        });
        let ended = self.store.was_ended;
        self.require(status != ExitStatus::Completed || ended, || {
            format!("agent {agent} says completed, the store does not")
        });
        self.require(status != ExitStatus::Bug, || {
            format!("agent {agent} broke down")
        });
        self.check_exit(agent);
        self.failed |= status == ExitStatus::Failed;
        self.bury(agent);
    }

    pub(super) fn patience() -> Duration {
        Duration::from_millis(TTL_MS).mul_f64(1.0 + RHO) + Duration::from_millis(SLACK_MS)
    }

    pub(super) fn new_nonce(&mut self) -> u64 {
        self.random.next() | 1
    }

    pub(super) fn new_operation(&mut self) -> usize {
        self.begun += 1;
        self.begun
    }

    pub(super) fn upload_ms(&mut self) -> u64 {
        let upload_ms = self.plan.upload_ms;
        self.random.between(upload_ms / 2, upload_ms * 2)
    }
}
