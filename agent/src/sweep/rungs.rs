//! Asynchronous successive halving (ASHA, Li et al. 2018, in its stopping form): what a trial has
//! reached at a rung is written down once, with what follows from it. Called by the worker.
//!
//! The verdict rests on those that were there before and is never taken back, so that a trial that
//! changes hands is judged once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::{Halving, Place, SweepError};
use crate::job::{Nonce, VERSION, list_all, read, to_bytes};
use crate::storage::retry::{Policy, Retry};
use crate::storage::{Created, Storage};

/// Entries read at once.
const READS_AT_ONCE: usize = 8;
const PATIENCE: Duration = Duration::from_secs(30);

/// What a rung means for a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    GoOn,
    Stop,
}

/// `rungs/<r>/<trial>.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct RungRecord {
    version: u32,
    trial: String,
    nonce: Nonce,
    /// Updates made when it was measured.
    step: u64,
    /// `None` if it was not a finite number: worse than any.
    val_loss: Option<f64>,
    /// Its place among those that were there, itself included: from 1.
    place: usize,
    of: usize,
    verdict: Verdict,
}

/// One worker's view of the rungs.
pub struct Rungs {
    store: Arc<dyn Storage>,
    place: Place,
    halving: Halving,
    /// By key; what is created once is read once.
    known: BTreeMap<String, RungRecord>,
}

impl Rungs {
    pub fn new(store: &Arc<dyn Storage>, place: &Place, halving: Halving) -> Self {
        let policy = Policy::until(PATIENCE);
        Self {
            store: Arc::new(Retry::new(Arc::clone(store), policy, fastrand::u64(..))),
            place: place.clone(),
            halving,
            known: BTreeMap::new(),
        }
    }

    /// The updates after which a rung is measured.
    pub fn step(&self, rung: u32) -> Option<u64> {
        self.halving.step(rung)
    }

    /// What was decided about a trial at a rung, if it came so far.
    ///
    /// # Errors
    /// Of the store.
    pub async fn decided(&self, rung: u32, trial: &str) -> Result<Option<Verdict>, SweepError> {
        let key = self.place.rung(rung, trial);
        match read::<RungRecord>(&*self.store, &key).await {
            Ok(record) => Ok(Some(record.verdict)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a trial was stopped at any rung.
    ///
    /// # Errors
    /// Of the store.
    pub async fn is_stopped(&self, trial: &str) -> Result<bool, SweepError> {
        let mut rung = 0;
        while self.step(rung).is_some() {
            match self.decided(rung, trial).await? {
                Some(Verdict::Stop) => return Ok(true),
                Some(Verdict::GoOn) => rung += 1,
                None => break,
            }
        }
        Ok(false)
    }

    /// Writes down how a trial fares at a rung, unless that was done before, and what follows.
    ///
    /// # Errors
    /// Of the store.
    pub async fn judge(
        &mut self,
        rung: u32,
        trial: &str,
        step: u64,
        val_loss: f64,
    ) -> Result<Verdict, SweepError> {
        let own = self.place.rung(rung, trial);
        self.catch_up(rung).await?;
        if let Some(record) = self.known.get(&own) {
            return Ok(record.verdict);
        }
        let prefix = self.place.rungs(rung);
        let val_loss = Some(val_loss).filter(|loss| loss.is_finite());
        let rank = |loss: Option<f64>| loss.unwrap_or(f64::INFINITY);
        let there = self
            .known
            .iter()
            .filter(|(key, _)| key.starts_with(&prefix));
        let losses: Vec<f64> = there.map(|(_, record)| rank(record.val_loss)).collect();
        let better = losses.iter().filter(|&&loss| loss < rank(val_loss)).count();
        let of = losses.len() + 1;
        let bits = u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(..));
        let record = RungRecord {
            version: VERSION,
            trial: trial.to_owned(),
            nonce: Nonce::from_bits(bits),
            step,
            val_loss,
            place: better + 1,
            of,
            verdict: verdict(self.halving.eta, better, of),
        };
        if let Created::New(_) = self.store.create(&own, to_bytes(&record)).await? {
            let verdict = record.verdict;
            self.known.insert(own, record);
            return Ok(verdict);
        }
        // A former holder wrote it between our look and now.
        Ok(read::<RungRecord>(&*self.store, &own).await?.verdict)
    }

    /// Reads the entries of a rung that are new.
    async fn catch_up(&mut self, rung: u32) -> Result<(), SweepError> {
        let listed = list_all(&*self.store, &self.place.rungs(rung)).await?;
        let keys = listed.into_iter().map(|entry| entry.key);
        let new: Vec<String> = keys.filter(|key| !self.known.contains_key(key)).collect();
        let store = &self.store;
        let reads = stream::iter(new).map(|key| async move {
            let record: RungRecord = read(&**store, &key).await?;
            Ok::<_, SweepError>((key, record))
        });
        let found: Vec<_> = reads.buffered(READS_AT_ONCE).try_collect().await?;
        self.known.extend(found);
        Ok(())
    }
}

/// Goes on: while there are too few to tell, and then in the best `1/eta`.
fn verdict(eta: u32, better: usize, of: usize) -> Verdict {
    let eta = eta as usize;
    if of < eta || better < of / eta {
        Verdict::GoOn
    } else {
        Verdict::Stop
    }
}
