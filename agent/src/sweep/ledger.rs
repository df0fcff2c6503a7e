//! The budget that all workers of a sweep share: a chain of create-only entries, each of which
//! holds the totals. Called by the worker.
//!
//! Whoever wants a change reads the newest entry `n` and creates `n + 1`; of several only one does,
//! and the others begin again from that. So what is spent and reserved together is never more than
//! the budget, whatever is lost or late on the way. Money is counted in millionths of a dollar.
//!
//! A reservation is of one epoch of one trial: a run that it pays for begins with that epoch or not
//! at all. Once that epoch has passed into other hands nobody can use it any more.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Place, SweepError, micro, usd};
use crate::job::{Nonce, VERSION, list_all, parse, to_bytes};
use crate::storage::retry::{Policy, Retry};
use crate::storage::{Created, Storage, StorageError};

/// Changes that others may get in before ours is given up.
const RACES_MAX: u32 = 500;
/// One change of the ledger is tried for so long while the store does not answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest pause before a lost race is tried again.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// One entry of the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    version: u32,
    /// From 1.
    n: u64,
    nonce: Nonce,
    limit_microusd: u64,
    spent_microusd: u64,
    reserved: Vec<Reservation>,
    /// What it changed, for people.
    change: String,
}

/// Money set aside for one claim of a trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    pub trial: String,
    /// The epoch that it pays for, and what follows from it in the same hands.
    pub epoch: u64,
    /// The worker, as in the lease's holder.
    pub owner: String,
    pub microusd: u64,
    pub microusd_per_hour: u64,
    /// The entry that made it.
    pub entry: u64,
}

/// What the newest entry says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    pub n: u64,
    pub spent_microusd: u64,
    pub reserved: Vec<Reservation>,
}

impl Account {
    /// Dollars that are spent for certain or by the most that a dead worker can have spent.
    pub fn spent_usd(&self) -> f64 {
        usd(self.spent_microusd)
    }

    pub fn reserved_usd(&self) -> f64 {
        usd(self.reserved_microusd())
    }

    fn reserved_microusd(&self) -> u64 {
        self.reserved.iter().map(|it| it.microusd).sum()
    }
}

/// What became of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserve {
    Made,
    /// Not now: others may give back what they do not spend.
    Short,
    /// Never: all that is not enough is spent.
    Spent,
}

/// One worker's view of the ledger.
pub struct Ledger {
    store: Arc<dyn Storage>,
    place: Place,
    limit_microusd: u64,
    owner: String,
    account: Account,
    /// What a claim has cost and could not be booked yet.
    owed: Option<(String, u64)>,
}

impl Ledger {
    /// `owner` is this worker's alone, for ever.
    pub fn new(store: &Arc<dyn Storage>, place: &Place, budget_usd: f64, owner: &str) -> Self {
        let policy = Policy {
            wait_max: Duration::from_secs(5),
            ..Policy::until(PATIENCE)
        };
        Self {
            store: Arc::new(Retry::new(Arc::clone(store), policy, fastrand::u64(..))),
            place: place.clone(),
            limit_microusd: micro(budget_usd),
            owner: owner.to_owned(),
            account: Account::default(),
            owed: None,
        }
    }

    /// The newest entry, read from the store.
    ///
    /// # Errors
    /// Of the store, or if what is there is no ledger.
    pub async fn refresh(&mut self) -> Result<&Account, SweepError> {
        let prefix = self.place.budgets();
        // Of a chain without gaps the last key is the newest entry's.
        let last = match self.account.n {
            0 => list_all(&*self.store, &prefix).await?.pop(),
            n => self.later(&self.place.budget(n)).await?,
        };
        if let Some(last) = last {
            let object = self.store.get(&last.key).await?;
            let entry: Entry = parse(&*self.store, &last.key, &object.bytes)?;
            if self.place.budget(entry.n) != last.key {
                let detail = format!("expected another number than {}", entry.n);
                return Err(self.broken(&last.key, detail));
            }
            self.take(entry);
        }
        Ok(&self.account)
    }

    /// The last entry after a known one.
    async fn later(&self, known: &str) -> Result<Option<crate::storage::Entry>, StorageError> {
        const PAGE: usize = 1000;
        let prefix = self.place.budgets();
        let (mut after, mut last) = (known.to_owned(), None);
        loop {
            let page = self.store.list(&prefix, Some(&after), PAGE).await?;
            let full = page.len() == PAGE;
            if let Some(entry) = page.into_iter().next_back() {
                after.clone_from(&entry.key);
                last = Some(entry);
            }
            if !full {
                return Ok(last);
            }
        }
    }

    /// Sets money aside for a claim of `epoch`. Whatever else is set aside for this worker was for
    /// a claim that it does not know of: that is given back.
    ///
    /// # Errors
    /// Of the store: then it is not known whether it was made; the next reservation settles that.
    pub async fn reserve(
        &mut self,
        trial: &str,
        epoch: u64,
        microusd: u64,
        microusd_per_hour: u64,
    ) -> Result<Reserve, SweepError> {
        if let Some((owed, spent)) = self.owed.clone() {
            self.settle(&owed, spent).await?;
        }
        let (owner, limit) = (self.owner.clone(), self.limit_microusd);
        self.change(|account| {
            account.reserved.retain(|it| it.owner != owner);
            if account.spent_microusd.saturating_add(microusd) > limit {
                return Err(Reserve::Spent);
            }
            let bound = account.spent_microusd + account.reserved_microusd();
            if bound.saturating_add(microusd) > limit {
                return Err(Reserve::Short);
            }
            account.reserved.push(Reservation {
                trial: trial.to_owned(),
                epoch,
                owner: owner.clone(),
                microusd,
                microusd_per_hour,
                entry: account.n + 1,
            });
            let text = format!("{owner} reserves {:.6} for {trial}", usd(microusd));
            Ok((Reserve::Made, text))
        })
        .await
    }

    /// Books what a claim has really cost. If others took it for dead and booked it, that stays.
    ///
    /// # Errors
    /// Of the store; it is then booked before the next reservation, or others take it for dead.
    pub async fn settle(&mut self, trial: &str, microusd: u64) -> Result<(), SweepError> {
        let owner = self.owner.clone();
        self.owed = Some((trial.to_owned(), microusd));
        self.change(|account| {
            let own = |it: &Reservation| it.owner == owner && it.trial == trial;
            let Some(at) = account.reserved.iter().position(own) else {
                return Err(());
            };
            account.reserved.remove(at);
            account.spent_microusd += microusd;
            Ok(((), format!("{owner} spent {:.6} on {trial}", usd(microusd))))
        })
        .await?;
        self.owed = None;
        Ok(())
    }

    /// Books what a dead worker's claim may have cost, and sets the rest of it free.
    ///
    /// # Errors
    /// Of the store.
    pub async fn reclaim(&mut self, dead: &Reservation, microusd: u64) -> Result<(), SweepError> {
        let microusd = microusd.min(dead.microusd);
        self.change(|account| {
            let Some(at) = account.reserved.iter().position(|it| it == dead) else {
                return Err(());
            };
            account.reserved.remove(at);
            account.spent_microusd += microusd;
            let Reservation { owner, trial, .. } = dead;
            let text = format!("{owner} is dead, {:.6} spent on {trial}", usd(microusd));
            Ok(((), text))
        })
        .await
    }

    /// Adds an entry that differs from the newest by `alter`, which may find that none is wanted.
    async fn change<T>(
        &mut self,
        mut alter: impl FnMut(&mut Account) -> Result<(T, String), T>,
    ) -> Result<T, SweepError> {
        let mut pause = Duration::from_millis(2);
        for _ in 0..RACES_MAX {
            let mut account = self.refresh().await?.clone();
            let (outcome, change) = match alter(&mut account) {
                Ok(altered) => altered,
                Err(outcome) => return Ok(outcome),
            };
            let bits = u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..));
            let entry = Entry {
                version: VERSION,
                n: account.n + 1,
                nonce: Nonce::from_bits(bits),
                limit_microusd: self.limit_microusd,
                spent_microusd: account.spent_microusd,
                reserved: account.reserved,
                change,
            };
            let key = self.place.budget(entry.n);
            match self.store.create(&key, to_bytes(&entry)).await? {
                Created::New(_) => {
                    self.take(entry);
                    return Ok(outcome);
                }
                Created::Exists => {
                    tokio::time::sleep(pause.mul_f64(fastrand::f64())).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
        let detail = format!("others were faster {RACES_MAX} times");
        Err(
            StorageError::transient(&self.store.name(), "create", &self.place.budgets(), detail)
                .into(),
        )
    }

    fn take(&mut self, entry: Entry) {
        self.account = Account {
            n: entry.n,
            spent_microusd: entry.spent_microusd,
            reserved: entry.reserved,
        };
    }

    fn broken(&self, key: &str, detail: String) -> SweepError {
        crate::job::JobError::Malformed {
            store: self.store.name(),
            key: key.to_owned(),
            detail,
        }
        .into()
    }
}
