//! Seeded schedules of several hosts that claim, publish, prune, sweep, restore, are suspended and
//! come back as zombies, against a store with faults. After each step, whatever happened: the
//! history names whole checkpoints only, and never loses what a claim or a restore relied on.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::checkpoints::kit::{Host, Paused, World, allowed, id, silent};
use crate::checkpoints::{Depth, Policy, Published, Source, prune, restore, stage, sweep, verify};
use crate::job::{CommitId, Holder, LeaseReason};
use crate::lease::{self, Claim, Claimant, Lease, Terms};
use crate::storage::faults::Plan;

const SEEDS: u64 = 60;
const STEPS: u32 = 25;

/// A host and what its agent believes.
struct Agent {
    host: Host,
    lease: Option<Lease>,
    resumed_from: Option<CommitId>,
    parent: Option<CommitId>,
    step: u64,
}

/// What was published, by commit: the very bytes.
type Originals = BTreeMap<CommitId, Option<BTreeMap<String, Vec<u8>>>>;

struct Schedule {
    seed: u64,
    world: World,
    clock: Paused,
    random: fastrand::Rng,
    agents: Vec<Agent>,
    originals: Originals,
    told: Vec<String>,
}

impl Schedule {
    fn new(seed: u64) -> Self {
        let world = World::with(Plan {
            seed,
            fail_before: 0.04,
            fail_after: 0.04,
            conflict: 0.06,
            slow_down: 0.03,
            delay: 0.05,
            delay_max: Duration::from_secs(40),
            late: 0.04,
            ..Plan::default()
        });
        let agent = |_| Agent {
            host: Host::new(),
            lease: None,
            resumed_from: None,
            parent: None,
            step: 0,
        };
        Self {
            seed,
            world,
            clock: Paused::new(),
            random: fastrand::Rng::with_seed(seed),
            agents: (0..3).map(agent).collect(),
            originals: BTreeMap::new(),
            told: Vec::new(),
        }
    }

    fn context(&self) -> String {
        format!("seed {}:\n{}", self.seed, self.told.join("\n"))
    }

    /// Takes the job, whoever has it, and restores.
    async fn claim(&mut self, who: usize) {
        let (world, terms) = (&self.world, Terms::default());
        let claimant = Claimant {
            nonce: world.nonce(),
            holder: Holder::default(),
            attempt: 1,
            reason: LeaseReason::Restarted,
        };
        let Ok(look) = lease::look(world.store.as_ref(), &world.job, &terms).await else {
            return;
        };
        let (store, limit) = (world.store.as_ref(), Duration::from_secs(300));
        let claim = lease::claim(
            store,
            &self.clock,
            &world.job,
            &terms,
            &look,
            &claimant,
            limit,
        );
        let Ok(Claim::Won(lease)) = claim.await else {
            return;
        };
        let epoch = lease.epoch();
        let restored = world.restore(&self.agents[who].host, epoch).await;
        let restored = restored.unwrap_or_else(|e| panic!("{}\n{e}", self.context()));
        assert_eq!(
            restored.findings.iter().filter(|f| is_bad(f)).count(),
            0,
            "{}",
            self.context()
        );
        assert_eq!(restored.parent, lease.base(), "{}", self.context());
        let agent = &mut self.agents[who];
        agent.lease = Some(lease);
        agent.resumed_from = restored.parent;
        agent.parent = restored.parent;
        agent.step = restored.source.step();
        self.told
            .push(format!("{who} claims {epoch}, {:?}", restored.source));
        if let Source::Store { commit, .. } = restored.source {
            let found = self.agents[who].host.contents(commit.step);
            assert_eq!(found, self.originals[&commit], "{}", self.context());
        }
    }

    /// Trains on and publishes, be it as a zombie; perhaps killed on the way.
    async fn publish(&mut self, who: usize) {
        let Some(lease) = self.agents[who].lease.clone() else {
            return;
        };
        let agent = &mut self.agents[who];
        agent.step += self.random.u64(1..4);
        let loss = self.random.bool().then(|| self.random.f64());
        agent.host.save(agent.step, self.random.u64(..), loss);
        let (step, epoch) = (agent.step, lease.epoch());
        let commit = id(epoch, step);
        let contents = agent.host.contents(step);
        let mut upload = self
            .world
            .upload(&agent.host, epoch, step, agent.parent)
            .await;
        let (store, transfer) = (&self.world.store, &self.world.transfer);
        // Before it is sent: a commit may land although its agent is killed.
        self.originals.entry(commit).or_insert(contents);
        let patience = if self.random.u8(0..3) == 0 {
            self.random.u64(0..60)
        } else {
            100_000
        };
        let run = upload.run(store, transfer, &allowed, &silent);
        let published = tokio::time::timeout(Duration::from_secs(patience), run).await;
        self.told
            .push(format!("{who} publishes {commit}: {}", published.is_ok()));
        match published {
            Ok(Ok(Published::Committed(_))) => self.agents[who].parent = Some(commit),
            // Killed: a new process would claim anew.
            _ => self.agents[who].lease = None,
        }
    }

    async fn prune(&mut self, who: usize) {
        let agent = &self.agents[who];
        let Some(lease) = &agent.lease else {
            return;
        };
        let policy = Policy {
            settled: None,
            keep_last: self.random.usize(0..3),
            keep_best: self.random.bool(),
            keep_every: None,
        };
        let (world, epoch) = (&self.world, lease.epoch());
        let (store, job, transfer) = (&world.store, &world.job, &world.transfer);
        let patience = Duration::from_secs(self.random.u64(0..300));
        let run = prune(
            store,
            job,
            epoch,
            agent.resumed_from,
            &policy,
            transfer,
            &allowed,
        );
        let pruned = tokio::time::timeout(patience, run).await;
        self.told
            .push(format!("{who} prunes under {epoch}: {pruned:?}"));
        if self.random.bool() {
            tokio::time::advance(Duration::from_secs(25 * 3600)).await;
            let swept = sweep(store, job, epoch, None, transfer, &allowed).await;
            self.told.push(format!("{who} sweeps: {swept:?}"));
        }
    }

    async fn check(&self) {
        let report = self.world.verify().await;
        assert_eq!(report.problems, [] as [&str; 0], "{}", self.context());
        // The newest epoch's commits, then its base: nothing else can be newest.
        let terms = Terms::default();
        let look = lease::look(self.world.memory.as_ref(), &self.world.job, &terms);
        let Some(top) = look.await.unwrap().top else {
            return;
        };
        let newest = report.history.first().copied();
        let own = newest.is_some_and(|newest| newest.epoch == top.record.epoch);
        assert!(own || newest == top.record.base, "{}", self.context());
        // In one line: no two commits of one history were made side by side.
        let epochs: Vec<u64> = report.history.iter().map(|commit| commit.epoch).collect();
        assert!(epochs.is_sorted_by(|a, b| a >= b), "{}", self.context());
    }
}

fn is_bad(finding: &crate::checkpoints::Finding) -> bool {
    matches!(finding, crate::checkpoints::Finding::Bad { .. })
}

#[tokio::test(start_paused = true)]
async fn no_schedule_breaks_the_history() {
    let (mut commits, mut orphans, mut epochs) = (0, 0, 0);
    for seed in 0..SEEDS {
        let mut schedule = Schedule::new(seed);
        for _ in 0..STEPS {
            let who = schedule.random.usize(0..3);
            match schedule.random.u8(0..8) {
                0 | 1 => schedule.claim(who).await,
                2..=6 => schedule.publish(who).await,
                _ => schedule.prune(who).await,
            }
            schedule.check().await;
        }
        let report = schedule.world.verify().await;
        commits += report.history.len();
        orphans += report.orphans.len();
        epochs += report.epochs;
    }
    // The schedules are worth their name: takeovers, histories and zombies.
    assert!(
        epochs > 2 * SEEDS && commits > 50 && orphans > 10,
        "{epochs} {commits} {orphans}"
    );
}

/// The same seed, the same end: object by object.
#[tokio::test(start_paused = true)]
async fn a_seed_reprints_its_schedule() {
    let mut told = Vec::new();
    for _ in 0..2 {
        let mut schedule = Schedule::new(3);
        for _ in 0..10 {
            let who = schedule.random.usize(0..3);
            schedule.claim(who).await;
            schedule.publish(who).await;
        }
        told.push(schedule.context());
    }
    assert_eq!(told[0], told[1]);
}

/// The supervisor spawns them.
#[tokio::test(start_paused = true)]
async fn the_futures_can_move_between_threads() {
    fn sendable(_: impl Send) {}
    let (world, host) = (World::new(), Host::new());
    let World {
        store,
        job,
        transfer,
        ..
    } = &world;
    host.save(1, 0, None);
    let mut upload = world.upload(&host, 1, 1, None).await;
    sendable(upload.run(store, transfer, &allowed, &silent));
    sendable(upload.close(store.as_ref()));
    sendable(stage(&host.run_dir, 1, transfer));
    sendable(restore(store, job, 1, &host.run_dir, transfer));
    sendable(prune(
        store,
        job,
        1,
        None,
        &Policy::default(),
        transfer,
        &allowed,
    ));
    sendable(sweep(store, job, 1, None, transfer, &allowed));
    sendable(verify(store, job, Depth::Heads, transfer));
}
