//! Bringing a checkpoint of the run directory to the store, as a task, and what came of it.

use std::sync::Arc;
use std::time::Duration;

use super::{Executor, InFlight, Message, Options, Permit, checkpoint_fault, fault, new_nonce};
use crate::checkpoints::{self, CheckpointError, Published as Outcome, Upload};
use crate::job::CommitId;
use crate::state::{Event, Published};

impl Executor {
    pub(super) fn publish(&mut self, epoch: u64, step: u64) {
        let options = Arc::clone(&self.options);
        let (kept, permit) = (Arc::clone(&self.upload), Arc::clone(&self.permit));
        let in_flight = Arc::clone(&self.in_flight);
        let parent = self.parent;
        let began = self.options.clock.now();
        let work = async move {
            let result = upload(&options, &kept, &in_flight, (epoch, step), parent, &permit).await;
            Message::Published {
                epoch,
                step,
                took: options.clock.now().since(began),
                result,
            }
        };
        let cancelled = Message::Event(Event::PublishEnded {
            epoch,
            step,
            result: Err(fault(true, &"cancelled")),
        });
        let threads = self.quiet.handle();
        self.publishing = Some(self.spawn_on(threads, work, Some(cancelled)));
    }

    pub(super) fn published(
        &mut self,
        (epoch, step): (u64, u64),
        took: Duration,
        result: Result<Outcome, CheckpointError>,
    ) -> Event {
        let result = match result {
            Ok(Outcome::Committed(commit) | Outcome::Already(commit)) => {
                self.parent = Some(commit.id());
                let bytes = commit.bytes();
                Ok(Published { bytes, took })
            }
            Err(CheckpointError::Gone { .. }) => return Event::CheckpointGone { epoch, step },
            Err(error) => {
                let fenced = matches!(error, CheckpointError::NotPermitted { .. });
                self.board.unpublished(fenced);
                Err(checkpoint_fault(&error))
            }
        };
        Event::PublishEnded {
            epoch,
            step,
            result,
        }
    }
}

/// Stages and uploads, going on with what an earlier try has done.
async fn upload(
    options: &Options,
    kept: &tokio::sync::Mutex<Option<Upload>>,
    in_flight: &InFlight,
    (epoch, step): (u64, u64),
    parent: Option<CommitId>,
    permit: &Permit,
) -> Result<Outcome, CheckpointError> {
    let mut kept = kept.lock().await;
    let store = &options.store;
    let wanted = CommitId { epoch, step };
    if let Some(old) = kept.take_if(|upload| upload.id() != wanted) {
        old.close(&**store).await?;
    }
    if kept.is_none() {
        let staged = checkpoints::stage(&options.run_dir, step, &options.transfer).await?;
        let nonce = new_nonce();
        in_flight.set(nonce.clone());
        *kept = Some(Upload::new(
            &options.job,
            epoch,
            nonce,
            parent,
            None,
            staged,
        ));
    }
    let upload = kept.as_mut().expect("put there just now");
    let allows = || permit.allows();
    let outcome = upload.run(store, &options.transfer, &allows, &|_| {}).await;
    if outcome
        .as_ref()
        .err()
        .is_none_or(|error| !checkpoint_fault(error).transient)
        && let Some(done) = kept.take()
    {
        done.close(&**store).await?;
    }
    outcome
}
