//! How a sweep stands: every trial with its state and its best validation loss. Called by the
//! command line. Reads the store and changes nothing.

use std::fmt::Write;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Account, Ledger, Place, Settings, Spec, SweepError, Trial};
use crate::checkpoints::{self, CheckpointError, Transfer};
use crate::job::{Job, StatusEnvelope, read};
use crate::lease::{self, Standing, Terms};
use crate::storage::Storage;
use crate::storage::retry::{Policy, Retry};

/// Trials read at once.
const READS_AT_ONCE: usize = 16;

/// Where a trial stands. The order is that of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TrialState {
    Completed,
    /// Not among the best at a rung.
    Stopped,
    Running,
    Failed,
    Poisoned,
    /// Never begun, or begun and left for the next worker.
    Pending,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub trial: String,
    pub state: TrialState,
    /// The best that is published, or what a running trial says.
    pub val_loss: Option<f64>,
    /// The step of the newest published checkpoint, or where a running trial is.
    pub step: Option<u64>,
    /// Times that it was claimed.
    pub epochs: u64,
    /// Who has it, if it is running.
    pub holder: Option<String>,
    /// Why it ended.
    pub reason: Option<String>,
    pub settings: Settings,
}

/// A sweep as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Overview {
    spec: Spec,
    /// Best first; within a state by validation loss.
    pub rows: Vec<Row>,
    account: Option<Account>,
}

/// Reads how a sweep stands.
///
/// # Errors
/// Of the store, `Missing` where there is no such sweep.
pub async fn overview(store: &Arc<dyn Storage>, place: &Place) -> Result<Overview, SweepError> {
    let transfer = Transfer::default();
    let policy = Policy::until(transfer.deadline);
    let steady: Arc<dyn Storage> =
        Arc::new(Retry::new(Arc::clone(store), policy, fastrand::u64(..)));
    let spec = Spec::read(&*steady, place).await?;
    let (steady, transfer) = (&steady, &transfer);
    let reads = spec.trials.iter().map(|trial| async move {
        let job = place.trial(&trial.id)?;
        row(steady, trial, &job, transfer).await
    });
    let mut rows: Vec<Row> = stream::iter(reads)
        .buffered(READS_AT_ONCE)
        .try_collect()
        .await?;
    let rank = |row: &Row| row.val_loss.unwrap_or(f64::INFINITY);
    rows.sort_by(|a, b| {
        let by_loss = rank(a).total_cmp(&rank(b));
        a.state.cmp(&b.state).then(by_loss)
    });
    let account = match spec.budget {
        Some(budget) => {
            let mut ledger = Ledger::new(steady, place, budget.usd, "status");
            Some(ledger.refresh().await?.clone())
        }
        None => None,
    };
    Ok(Overview {
        spec,
        rows,
        account,
    })
}

async fn row(
    store: &Arc<dyn Storage>,
    trial: &Trial,
    job: &Job,
    transfer: &Transfer,
) -> Result<Row, SweepError> {
    let look = lease::look(&**store, job, &Terms::default()).await?;
    let mut row = Row {
        trial: trial.id.clone(),
        state: TrialState::Pending,
        val_loss: None,
        step: None,
        epochs: look.epoch(),
        holder: None,
        reason: None,
        settings: trial.settings.clone(),
    };
    let Some(top) = &look.top else {
        return Ok(row);
    };
    if let Some(end) = &top.end {
        row.state = match (end.status.as_str(), end.reason.as_str()) {
            ("completed", _) => TrialState::Completed,
            ("stopped", _) => TrialState::Stopped,
            (_, "poison") => TrialState::Poisoned,
            _ => TrialState::Failed,
        };
        row.reason = Some(end.reason.clone());
    }
    let history = match checkpoints::history(store, job, transfer).await {
        Ok(history) => history,
        Err(CheckpointError::Job(error)) => return Err(error.into()),
        Err(error) => return Err(SweepError::Spec(vec![error.to_string()])),
    };
    row.step = history.newest().map(|commit| commit.step);
    let losses = history.commits.iter().filter_map(|commit| commit.val_loss);
    row.val_loss = losses.min_by(f64::total_cmp);
    if look.standing() == Standing::Held {
        row.state = TrialState::Running;
        row.holder = Some(top.record.holder.agent.clone());
        match read::<StatusEnvelope>(&**store, &job.status()).await {
            Ok(told) if told.epoch == top.record.epoch => {
                let progress = &told.status["progress"];
                let now = progress["val_loss"].as_f64();
                row.val_loss = row.val_loss.into_iter().chain(now).min_by(f64::total_cmp);
                row.step = row.step.max(progress["step"].as_u64());
            }
            Ok(_) => {}
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(row)
}

impl Overview {
    /// For programs.
    pub fn to_json(&self) -> Value {
        let budget = self.account.as_ref().map(|account| {
            json!({
                "limit_usd": self.limit_usd(),
                "spent_usd": account.spent_usd(),
                "reserved_usd": account.reserved_usd(),
            })
        });
        json!({"sweep": self.spec.name, "budget": budget, "trials": self.rows})
    }

    fn limit_usd(&self) -> f64 {
        self.spec.budget.map_or(0.0, |budget| budget.usd)
    }

    /// For people: what it comes to, then one line for each trial.
    pub fn to_text(&self) -> String {
        let mut text = format!("sweep {}: {} trials", self.spec.name, self.rows.len());
        for state in [
            TrialState::Completed,
            TrialState::Stopped,
            TrialState::Running,
            TrialState::Failed,
            TrialState::Poisoned,
            TrialState::Pending,
        ] {
            let count = self.rows.iter().filter(|row| row.state == state).count();
            if count > 0 {
                put(&mut text, &format!(", {count} {}", word(state)));
            }
        }
        if let Some(account) = &self.account {
            let (spent, reserved) = (account.spent_usd(), account.reserved_usd());
            let limit = self.limit_usd();
            let line = format!("\nbudget ${limit:.2}: ${spent:.4} spent, ${reserved:.4} reserved");
            put(&mut text, &line);
        }
        let varied = self.spec.varied();
        let mut table = vec![vec!["trial", "state", "val loss", "step", "claims"]];
        table[0].extend(varied.iter().map(String::as_str));
        let cells: Vec<Vec<String>> = self.rows.iter().map(|row| cells(row, &varied)).collect();
        table.extend(
            cells
                .iter()
                .map(|row| row.iter().map(String::as_str).collect()),
        );
        let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max();
        let widths: Vec<usize> = (0..table[0].len()).filter_map(width).collect();
        for row in &table {
            text.push('\n');
            let padded = row.iter().zip(&widths);
            let padded: Vec<String> = padded.map(|(it, width)| format!("{it:<width$}")).collect();
            put(&mut text, padded.join("  ").trim_end());
        }
        text
    }
}

fn cells(row: &Row, varied: &[String]) -> Vec<String> {
    let shown = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let mut cells = vec![
        row.trial.clone(),
        word(row.state).to_owned(),
        shown(row.val_loss.map(|loss| format!("{loss:.4}"))),
        shown(row.step.map(|step| step.to_string())),
        row.epochs.to_string(),
    ];
    let settings = varied.iter().map(|key| row.settings.get(key));
    cells.extend(settings.map(|value| shown(value.map(super::Setting::word))));
    cells
}

fn word(state: TrialState) -> &'static str {
    match state {
        TrialState::Completed => "completed",
        TrialState::Stopped => "stopped",
        TrialState::Running => "running",
        TrialState::Failed => "failed",
        TrialState::Poisoned => "poisoned",
        TrialState::Pending => "pending",
    }
}

fn put(text: &mut String, more: &str) {
    text.write_str(more).expect("a String takes everything");
}
