//! Machines, what happens to them, and how a schedule ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::RunDir;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::plan::{Bug, Plan, TTL};
use super::process::{Order, Place, Process, Skewed};
use super::truth::{Counts, Face, Truth};
use super::wire::{Ground, Wire};
use crate::checkpoints::{Depth, verify};
use crate::clock::Clock;
use crate::error::ExitStatus;
use crate::job::{Holder, Nonce};
use crate::lease;
use crate::logs::{Console, Logs};
use crate::redact::Redactor;
use crate::run::{self, Executor, Local, Options, Quiet};
use crate::storage::Storage;
use crate::storage::faults::{Faulty, Quirks};
use crate::storage::memory::Memory;

/// After the faults have stopped, the job must end within this.
const PATIENCE: Duration = Duration::from_secs(20 * 60);
/// A schedule begins at this moment of everybody's boot clock.
const UPTIME: Duration = Duration::from_secs(5_000);

/// What happens next.
enum Due {
    Fault,
    Spawn(usize),
    /// The grace is over that this process was given at this moment.
    GraceOver(usize, Instant),
    StoreIsBack(Option<usize>),
}

struct Machine {
    run_dir: PathBuf,
    agent: Option<usize>,
}

struct Running {
    machine: usize,
    task: AbortHandle,
    orders: mpsc::UnboundedSender<Order>,
    faulty: Arc<Faulty>,
}

pub(super) struct World {
    plan: Plan,
    seed: u64,
    random: fastrand::Rng,
    pub(super) truth: Arc<Truth>,
    folder: PathBuf,
    due: BTreeMap<(Instant, u64), Due>,
    count: u64,
    machines: Vec<Machine>,
    running: BTreeMap<usize, Running>,
    exited: mpsc::UnboundedReceiver<(usize, ExitStatus)>,
    exits: mpsc::UnboundedSender<(usize, ExitStatus)>,
    revocation: Option<tokio::task::JoinHandle<()>>,
    redactor: Arc<Redactor>,
}

impl World {
    pub(super) async fn new(plan: Plan, seed: u64, folder: &Path, aloud: bool) -> Self {
        let began = Instant::now();
        let clock: Arc<dyn Clock> = Arc::new(Skewed {
            began,
            offset: UPTIME,
            rate: 1.0,
        });
        let memory = Memory::with_clock(clock).with_part_bytes_min(1);
        let mut truth = Truth::new(Arc::new(memory), folder.to_owned(), plan.total, aloud);
        if plan.litter {
            truth.litter().await;
            truth.began = Instant::now();
        }
        let (exits, exited) = mpsc::unbounded_channel();
        let mut world = Self {
            seed,
            random: fastrand::Rng::with_seed(seed),
            truth: Arc::new(truth),
            folder: folder.to_owned(),
            due: BTreeMap::new(),
            count: 0,
            machines: Vec::new(),
            running: BTreeMap::new(),
            exited,
            exits,
            revocation: None,
            redactor: Arc::new(Redactor::from_variables([])),
            plan,
        };
        for machine in 0..world.plan.machines {
            let run_dir = world.new_folder();
            world.machines.push(Machine {
                run_dir,
                agent: None,
            });
            let after = world.random.u64(0..2_000);
            world.plan_in(after, Due::Spawn(machine));
        }
        if !world.plan.faults_until.is_zero() {
            world.plan_in(1_000, Due::Fault);
        }
        world
    }

    fn new_folder(&mut self) -> PathBuf {
        self.count += 1;
        self.folder.join(format!("run{}", self.count))
    }

    fn plan_in(&mut self, after_ms: u64, due: Due) {
        self.count += 1;
        let at = Instant::now() + Duration::from_millis(after_ms);
        self.due.insert((at, self.count), due);
    }

    /// Runs the schedule to the end of the job.
    pub(super) async fn run(&mut self) -> Result<Counts, String> {
        let end = self.truth.began + self.plan.faults_until + PATIENCE;
        loop {
            if let Some(violated) = self.truth.violated() {
                return Err(violated);
            }
            self.bury_the_dead();
            if self.running.is_empty() && self.is_ended().await {
                return self.judge().await;
            }
            if Instant::now() > end {
                return Err("the job does not come to its end".to_owned());
            }
            let next = self.due.keys().next().map_or(end, |(at, _)| (*at).min(end));
            let next = next + Duration::from_millis(1);
            tokio::select! {
                biased;
                () = self.truth.changed.notified() => {}
                Some((who, _)) = self.exited.recv() => self.bury(who),
                () = sleep_until(next) => {
                    while let Some(entry) = self.due.first_entry() {
                        if entry.key().0 > Instant::now() {
                            break;
                        }
                        let due = entry.remove();
                        self.happen(due).await;
                    }
                }
            }
        }
    }

    async fn is_ended(&self) -> bool {
        self.truth.survey().await.ended.is_some()
    }

    /// The store at the end, by the function that people use.
    async fn judge(&self) -> Result<Counts, String> {
        let (store, job) = (&self.truth.memory, &self.truth.job);
        let report = verify(store, job, Depth::Bytes, &self.plan.transfer()).await;
        let report = report.map_err(|error| error.to_string())?;
        let problems = report.problems.into_iter();
        let problems: Vec<String> = problems.filter(|p| !self.truth.is_expected(p)).collect();
        if !problems.is_empty() {
            return Err(format!("the store at the end: {problems:?}"));
        }
        let newest = report.history.first().map(|commit| commit.step);
        if newest != Some(self.plan.total) {
            return Err(format!("the job has ended at {newest:?}"));
        }
        match self.truth.violated() {
            Some(violated) => Err(violated),
            None => Ok(self.truth.counts()),
        }
    }

    fn is_rough(&self) -> bool {
        self.truth.began.elapsed() < self.plan.faults_until
    }

    async fn happen(&mut self, due: Due) {
        match due {
            Due::Fault if self.is_rough() => self.fault().await,
            Due::Fault => {}
            Due::Spawn(machine) => {
                if self.machines[machine].agent.is_none() && !self.is_ended().await {
                    self.spawn(machine);
                }
            }
            Due::GraceOver(who, given) => {
                let frozen = self.truth.face(who, |face| face.frozen_until > given);
                let gone = !self.running.contains_key(&who);
                let slow = self.plan.bug == Some(Bug::FastClocks);
                self.truth.require(gone || frozen || slow, || {
                    format!("agent {who} is there when its grace is over")
                });
                self.kill(who);
            }
            Due::StoreIsBack(of) => {
                for (who, running) in &self.running {
                    if of.is_none_or(|of| of == *who) {
                        running.faulty.set_down(false);
                    }
                }
            }
        }
    }

    /// A process's way to the store.
    fn wire(&self, who: usize) -> (Arc<Wire>, Arc<Faulty>) {
        let seed = self.seed.wrapping_mul(1_000).wrapping_add(who as u64);
        let (plan, truth) = (&self.plan, &self.truth);
        let elsewhere = || Arc::new(Memory::new().with_part_bytes_min(1)) as Arc<dyn Storage>;
        let ground = Arc::new(Ground {
            who,
            truth: Arc::clone(truth),
            elsewhere: (plan.bug == Some(Bug::CommitFirst)).then(elsewhere),
        });
        let clock = Arc::new(Skewed {
            began: truth.began,
            offset: UPTIME,
            rate: 1.0,
        });
        let quirks = Quirks {
            create_replaces: plan.bug == Some(Bug::CreateReplaces),
            ..Quirks::default()
        };
        let below = Arc::clone(&ground) as Arc<dyn Storage>;
        let faulty = Arc::new(Faulty::new(below, clock, plan.requests(seed)).with_quirks(quirks));
        let wire = Wire {
            who,
            truth: Arc::clone(truth),
            faulty: Arc::clone(&faulty),
            ground,
            calm_after: truth.began + plan.faults_until,
            random: Mutex::new(fastrand::Rng::with_seed(!seed)),
            requests: AtomicU64::new(0),
            way_ms_max: plan.way_ms_max,
            cut: plan.cut.filter(|_| who == 0),
            wall_off_s: plan.wall_off_s * (who as i64 % 3 - 1),
            bug: plan.bug,
        };
        (Arc::new(wire), faulty)
    }

    fn appear(&mut self) -> (usize, Arc<dyn Clock>) {
        let spread = if self.plan.bug == Some(Bug::FastClocks) {
            0.3
        } else {
            // Rates differ by less than rho, which is all that is promised of clocks.
            0.004
        };
        let clock: Arc<dyn Clock> = Arc::new(Skewed {
            began: self.truth.began,
            offset: Duration::from_secs(self.random.u64(1..1_000_000)),
            rate: 1.0 + spread * (2.0 * self.random.f64() - 1.0),
        });
        let who = self.truth.appear(Face {
            alive: true,
            frozen_until: self.truth.began,
            clock: Arc::clone(&clock),
            held: None,
            resumed_from: None,
        });
        (who, clock)
    }

    fn spawn(&mut self, machine: usize) {
        let (who, clock) = self.appear();
        let (wire, faulty) = self.wire(who);
        let run_dir = RunDir::new(&self.machines[machine].run_dir);
        let boot = format!("machine {}", run_dir.root().display());
        let local = Local::open(&run_dir, &boot).unwrap();
        let local = local.expect("the agent before is dead");
        let store = wire as Arc<dyn Storage>;
        let options = Options {
            store: Arc::clone(&store),
            job: self.truth.job.clone(),
            run_dir: run_dir.clone(),
            holder: Holder {
                agent: format!("agent {who}"),
                boot,
                ..Holder::default()
            },
            settings: self.plan.settings(),
            terms: Plan::terms(),
            policy: self.plan.policy(),
            transfer: self.plan.transfer(),
            command: vec!["trainer".to_owned()],
            grace: Duration::from_secs(30),
            pass_env: Vec::new(),
            redactor: Arc::clone(&self.redactor),
            clock: Arc::clone(&clock),
            first_epoch: None,
            machine: run::Machine::default(),
        };
        let console = Console {
            stdout: Box::new(std::io::sink()),
            stderr: Box::new(std::io::sink()),
        };
        let redactor = Arc::clone(&options.redactor);
        // Not in the run directory: the threads of a log outlive a process that is killed here.
        let logs = self.folder.join(format!("logs{who}"));
        let logs = Logs::open(&logs, redactor, console).unwrap();
        let place = Place {
            who,
            plan: self.plan.clone(),
            truth: Arc::clone(&self.truth),
            store,
            clock,
            run_dir,
        };
        self.truth
            .note(|| format!("machine {machine} starts agent {who}"));
        let (orders, hears) = mpsc::unbounded_channel();
        let make = |tell| Executor::new(options, local, logs, tell, Quiet::here());
        let process = Process::new(place, make, hears, self.seed ^ who as u64);
        let exits = self.exits.clone();
        let task = tokio::spawn(async move {
            let status = process.live().await;
            exits.send((who, status)).ok();
        });
        self.machines[machine].agent = Some(who);
        let running = Running {
            machine,
            task: task.abort_handle(),
            orders,
            faulty,
        };
        self.running.insert(who, running);
    }

    fn kill(&mut self, who: usize) {
        if self.running.contains_key(&who) {
            self.truth.note(|| format!("agent {who} is killed"));
            self.truth.kill(who);
        }
    }

    /// Those that were killed, be it by a cut.
    fn bury_the_dead(&mut self) {
        let dead = self.running.keys().copied();
        let dead: Vec<usize> = dead
            .filter(|who| self.truth.face(*who, |face| !face.alive))
            .collect();
        for who in dead {
            if self.plan.cut.is_some() && who == 0 {
                // The next one is elsewhere, or here: by the number of the request.
                let (number, _) = self.plan.cut.expect("just looked at");
                let machine = self.running[&who].machine;
                if number.is_multiple_of(2) {
                    self.machines[machine].run_dir = self.new_folder();
                }
            }
            self.bury(who);
        }
    }

    /// A process is gone, and its trainer with it.
    fn bury(&mut self, who: usize) {
        let Some(running) = self.running.remove(&who) else {
            return;
        };
        running.task.abort();
        self.truth.face(who, |face| face.alive = false);
        self.machines[running.machine].agent = None;
        let after = self.random.u64(500..20_000);
        self.plan_in(after, Due::Spawn(running.machine));
    }

    async fn fault(&mut self) {
        let next = self.random.u64(100..=self.plan.fault_every * 2);
        self.plan_in(next, Due::Fault);
        let living: Vec<usize> = self.running.keys().copied().collect();
        if living.is_empty() {
            return;
        }
        let who = living[self.random.usize(..living.len())];
        let machine = self.running[&who].machine;
        if self.random.u64(0..100) < self.plan.damages {
            let truth = Arc::clone(&self.truth);
            return truth.damage(&mut self.random).await;
        }
        let dice = self.random.u8(0..100);
        self.truth.note(|| format!("fault {dice} at agent {who}"));
        let order = |order| self.running[&who].orders.send(order).ok();
        match dice {
            0..=14 => {
                let codes = [1, 1, 139, 73, 69, 75, 101];
                let code = Some(codes[usize::from(dice) % codes.len()]);
                order(Order::End { code, signal: None });
            }
            15..=19 => {
                let signal = Some(9);
                order(Order::End { code: None, signal });
            }
            20..=24 => {
                order(Order::Hang);
            }
            25..=29 => {
                order(Order::Deafen);
            }
            30..=41 => self.kill(who),
            42..=49 => {
                self.kill(who);
                self.machines[machine].run_dir = self.new_folder();
            }
            50..=57 => {
                let seconds = self.random.u64(1..20);
                order(Order::Notice(Duration::from_secs(seconds)));
                let over = Due::GraceOver(who, Instant::now());
                self.plan_in(seconds * 1_000 + 800, over);
            }
            58..=75 => {
                let until = Instant::now() + Duration::from_millis(self.random.u64(1_000..60_000));
                self.truth
                    .face(who, |face| face.frozen_until = face.frozen_until.max(until));
            }
            76..=83 => self.outage(Some(who)),
            84..=91 => self.outage(None),
            92..=93 => self.revoke(),
            _ => self.command().await,
        }
    }

    /// The store cannot be reached, by one or by all.
    fn outage(&mut self, of: Option<usize>) {
        for (who, running) in &self.running {
            if of.is_none_or(|of| of == *who) {
                running.faulty.set_down(true);
            }
        }
        let after = self.random.u64(1_000..40_000);
        self.plan_in(after, Due::StoreIsBack(of));
    }

    /// The orchestrator says something, through the store.
    async fn command(&mut self) {
        self.count += 1;
        let key = self.truth.job.control(self.count);
        let command = match self.random.u8(0..4) {
            0 => r#"{"kind": "stop"}"#,
            1 => r#"{"kind": "stop", "mode": "now"}"#,
            _ => r#"{"kind": "checkpoint"}"#,
        };
        self.truth.note(|| format!("the orchestrator: {command}"));
        let created = self.truth.memory.create(&key, command.into()).await;
        created.expect("memory does not fail");
    }

    /// The orchestrator takes the job away, and gives it back when nobody relies on it any more.
    fn revoke(&mut self) {
        if self.revocation.as_ref().is_some_and(|it| !it.is_finished()) {
            return;
        }
        let (who, clock) = self.appear();
        let (wire, _) = self.wire(who);
        let (truth, terms) = (Arc::clone(&self.truth), Plan::terms());
        let mut bits = u128::MAX - 1_000 * who as u128;
        let patience = Duration::from_secs(30);
        self.revocation = Some(tokio::spawn(async move {
            let job = &truth.job;
            // Until it is known what became of it.
            let record = loop {
                bits -= 1;
                let nonce = Nonce::from_bits(bits);
                let revoked = lease::revoke(&*wire, &*clock, job, &terms, nonce, patience).await;
                truth.note(|| format!("the orchestrator revokes: {revoked:?}"));
                match revoked {
                    Ok(Some(record)) => break record,
                    Ok(None) => return,
                    Err(_) => {}
                }
            };
            tokio::time::sleep(TTL * 2).await;
            let give_back = || lease::release(&*wire, job, &terms, &record, "again", patience);
            while give_back().await.is_err() {}
            truth.note(|| "the orchestrator gives the job back".to_owned());
        }));
    }
}
