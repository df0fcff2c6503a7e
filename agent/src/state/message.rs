//! Everything that can happen and everything that can be done, with what they carry.

use std::time::Duration;

use protocol::Record;

use super::{Command, Drill, Reason};
use crate::clock::Moment;
use crate::error::ExitStatus;
use crate::progress::Report;
use crate::provider::{PowerOff, Price};
use crate::storage::Keys;

/// Something that happened. Each action that asks for something is answered by exactly one event,
/// whatever becomes of it.
#[derive(Clone, Debug)]
pub enum Event {
    /// Time passed. Comes several times a second.
    Tick,
    /// Answers [`Action::Probe`].
    Probed(Result<Verdict, Fault>),
    /// Answers [`Action::Look`]. `asked` is the moment before the question left.
    Looked {
        asked: Moment,
        sight: Result<Sight, Fault>,
    },
    /// Answers [`Action::Claim`]. `asked` is the moment before the claim left.
    Claimed {
        asked: Moment,
        claim: Result<Claim, Fault>,
    },
    /// Answers [`Action::Beat`]. `asked` is the moment before the beat left.
    BeatAnswered {
        epoch: u64,
        asked: Moment,
        beat: Result<Beat, Fault>,
    },
    /// Answers [`Action::Restore`].
    Restored(Result<Restored, Fault>),
    /// Answers [`Action::Start`].
    Started(Result<u32, Fault>),
    /// The trainer and its whole process group are gone.
    Exited(Exit),
    /// The trainer reported something.
    Record(Record),
    /// A trainer that writes no events says where it stands.
    Reported(Box<Report>),
    /// A checkpoint is complete in the run directory.
    CheckpointFound { step: u64 },
    /// Answers [`Action::Publish`]: committed and read back, or not.
    PublishEnded {
        epoch: u64,
        step: u64,
        result: Result<Published, Fault>,
    },
    /// Answers [`Action::Publish`]: the trainer pruned that checkpoint before it could be held.
    CheckpointGone { epoch: u64, step: u64 },
    /// Answers [`Action::Prune`].
    Pruned(Result<(), Fault>),
    /// Answers [`Action::WriteStatus`].
    StatusWritten(Result<(), Fault>),
    /// Answers [`Action::WriteLogs`].
    LogsWritten(Result<(), Fault>),
    /// Answers [`Action::WriteFinal`]: written, and no later lease had made it void by then.
    FinalWritten(Result<(), Fault>),
    /// Answers [`Action::Release`].
    Released(Result<(), Fault>),
    /// Somebody wants this machine: a signal, later a provider's notice.
    Notice { source: String, grace: Duration },
    /// A person or an orchestrator says so.
    Command(Command),
    /// The same through the store, under this number, and answered in the status.
    Control { id: String, command: Command },
    /// The machine's price, as its provider says.
    Priced(Price),
    /// What the job had cost when its lease became ours, and how much of that was this machine.
    Spent { total_usd: f64, own_usd: f64 },
    /// Answers [`Action::PowerOff`]: it was asked for and taken, or not.
    PoweredOff(Result<(), Fault>),
    /// A part of the agent itself broke down.
    Broken(String),
}

/// Something to do now. None of them waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Find out whether the store keeps its promises.
    Probe,
    /// See who has the lease.
    Look,
    /// Create the lease after epoch `after`.
    Claim {
        after: u64,
    },
    /// Show that the holder lives, and see whether anybody took the lease.
    Beat,
    /// Bring the newest valid checkpoint into the run directory, if it does not hold a newer one.
    Restore,
    /// Give up a restore; it is answered as failed.
    CancelRestore,
    /// Start the trainer.
    Start {
        attempt: u32,
    },
    /// Signal the trainer (the leader of its group only).
    Signal(Signal),
    /// Kill the trainer's whole group at once.
    KillGroup,
    /// Stage, upload, verify and commit this checkpoint.
    Publish {
        epoch: u64,
        step: u64,
    },
    /// Give up an upload; it is answered as failed.
    CancelPublish,
    /// Delete published checkpoints that retention does not keep.
    Prune,
    /// Until when commits of the current epoch may be created; `None` = none may.
    CommitUntil(Option<Moment>),
    WriteStatus,
    /// Bring captured output to the store; `last` = all of it, the trainer is gone.
    WriteLogs {
        last: bool,
    },
    /// Write down the end of the job.
    WriteFinal(Reason),
    /// Leave the lease on purpose.
    Release,
    /// Give the machine back.
    PowerOff(PowerOff),
    /// Rehearse something that goes wrong.
    Drill(Drill),
    /// Ask the store with these keys from now on.
    Renew(Keys),
    /// Tell those who are not looking.
    Alert(Alert),
    /// Say something to the person.
    Say(Level, String),
    /// End the agent.
    Exit(ExitStatus),
}

/// Signals to the trainer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Save and exit.
    Terminate,
    /// Save and go on.
    Save,
}

/// How much a line of the agent matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Info,
    Warning,
    Error,
}

/// Something for a webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// The word for programs: `budget_80`, `max_duration_exceeded`, `power_off_refused`.
    pub event: String,
    /// The sentence for people.
    pub text: String,
}

/// Why something did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Whether it can work later without anybody's help.
    pub transient: bool,
    /// One line without secrets.
    pub text: String,
}

/// What a store turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Sound,
    /// Create-only is ignored or racy: no lease is worth anything there.
    NoLeases(String),
}

/// Who has the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Nobody: never claimed (`epoch` 0) or released.
    Free { epoch: u64 },
    Held {
        epoch: u64,
        /// Changes with each beat.
        tag: String,
        /// How long it must stay unchanged before it may be taken.
        patience: Duration,
        /// Who, for people.
        holder: String,
        /// Nobody: a former process of this agent on this machine that is known to be dead, or a
        /// claim of this process whose answer came too late or not at all.
        dead: bool,
    },
    /// The orchestrator took the job away.
    Revoked { epoch: u64 },
    /// The job has ended.
    Done { epoch: u64, status: String },
}

impl Sight {
    /// The newest epoch that was seen, 0 if there is none.
    pub fn epoch(&self) -> u64 {
        match self {
            Self::Free { epoch }
            | Self::Held { epoch, .. }
            | Self::Revoked { epoch }
            | Self::Done { epoch, .. } => *epoch,
        }
    }

    /// Who has it or had it last, for people.
    pub fn holder(&self) -> String {
        match self {
            Self::Held { holder, .. } => holder.clone(),
            _ => format!("the holder of epoch {}", self.epoch()),
        }
    }
}

/// What became of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Ours, with the step of the checkpoint that it begins from.
    Ours { epoch: u64, base: Option<u64> },
    /// Somebody else was faster.
    Taken,
}

/// What a beat saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beat {
    /// The beat is written and nobody has claimed since.
    Held,
    /// A later lease exists.
    Superseded { holder: String, revoked: bool },
}

/// What the run directory holds after a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The newest whole checkpoint in the run directory; `None` = a fresh start.
    pub step: Option<u64>,
    /// The newest good commit of the valid history.
    pub published: Option<u64>,
    /// Published checkpoints that turned out bad, as one line each.
    pub bad: Vec<String>,
}

/// A verified checkpoint in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    pub bytes: u64,
    pub took: Duration,
}

/// How the trainer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit status; `None` if a signal ended it.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// Whether the kernel killed something of it for lack of memory.
    pub out_of_memory: bool,
    /// The newest whole checkpoint in the run directory now.
    pub local: Option<u64>,
}
