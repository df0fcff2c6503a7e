//! Watching a lease that somebody else holds. Called by an agent that stands by.

use std::time::Duration;

use super::{Terms, Top};
use crate::clock::Moment;

/// Whether a held lease has gone silent, by our own clock and nothing else. Pure.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    seen: Option<Sign>,
}

#[derive(Clone, Debug, PartialEq)]
struct Sign {
    epoch: u64,
    beat: Option<String>,
    since: Moment,
}

/// What a watch says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// Nobody may claim before this moment, and then only if nothing has changed.
    Until(Moment),
    Expired,
}

impl Watch {
    /// Takes in a look. `now` is the moment its answer had arrived, never an earlier one: the
    /// holder counts from before it sent its beat, we from after we saw it.
    pub fn see(&mut self, terms: &Terms, top: &Top, now: Moment) -> Silence {
        let epoch = top.record.epoch;
        let since = match &self.seen {
            Some(sign) if sign.epoch == epoch && sign.beat == top.beat => sign.since,
            _ => now,
        };
        self.seen = Some(Sign {
            epoch,
            beat: top.beat.clone(),
            since,
        });
        let until = since + terms.patience(Duration::from_millis(top.record.ttl_ms));
        if now >= until {
            Silence::Expired
        } else {
            Silence::Until(until)
        }
    }
}
