//! What an agent asks of the store, as the sequence of requests that the real functions make.

use std::time::Duration;

use super::store::{Commit, CommitId, LeaseRecord, Store, Top};
use super::world::{TTL_MS, World};
use crate::clock::Moment;
use crate::state::{Beat, Claim, Event, Fault, Published, Restored, Sight, Verdict};

/// How often a commit is tried whose answer was lost.
const COMMIT_TRIES: u32 = 4;
const KEEP: usize = 3;

pub(super) struct Operation {
    pub(super) agent: usize,
    kind: Kind,
    asked: Moment,
    waits_for: Stage,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Probe,
    Look,
    Claim {
        after: u64,
    },
    Beat {
        epoch: u64,
        failed: bool,
    },
    Restore {
        epoch: u64,
        left: Vec<CommitId>,
        bad: usize,
        newest: Option<CommitId>,
    },
    Publish {
        epoch: u64,
        step: u64,
        tries: u32,
    },
    Prune {
        epoch: u64,
        left: Vec<CommitId>,
    },
    Status,
    Logs,
    Final {
        epoch: u64,
        completed: bool,
    },
    Release {
        epoch: u64,
    },
}

/// Which answer an operation waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Only,
    Tag,
    Base,
    Create,
    Next,
    List,
    Transfer,
    Commit,
    Delete,
}

#[derive(Clone, Debug)]
pub(super) enum Request {
    Nothing,
    Top,
    Tag {
        epoch: u64,
    },
    Base {
        after: u64,
    },
    CreateLease {
        epoch: u64,
        record: LeaseRecord,
    },
    PutBeat {
        epoch: u64,
        tag: u64,
    },
    Next {
        epoch: u64,
    },
    History {
        epoch: u64,
    },
    Transfer {
        ms: u64,
    },
    CreateCommit {
        id: CommitId,
        parent: Option<CommitId>,
    },
    Delete {
        id: CommitId,
    },
    CreateFinal {
        epoch: u64,
        completed: bool,
    },
    CreateReleased {
        epoch: u64,
    },
}

#[derive(Clone, Debug)]
pub(super) enum Reply {
    Done,
    Top(Option<Top>),
    Tag(u64),
    Base(Option<CommitId>),
    Nonce(u64),
    Next(Option<bool>),
    History(Vec<CommitId>),
}

impl Request {
    /// One atomic change or look.
    pub(super) fn apply(self, store: &mut Store) -> Reply {
        match self {
            Self::Nothing | Self::Transfer { .. } => Reply::Done,
            Self::Top => Reply::Top(store.top()),
            Self::Tag { epoch } => Reply::Tag(store.beat_tag(epoch)),
            Self::Base { after } => Reply::Base(store.base_after(after)),
            Self::CreateLease { epoch, record } => Reply::Nonce(store.create_lease(epoch, record)),
            Self::PutBeat { epoch, tag } => {
                store.beat(epoch, tag);
                Reply::Done
            }
            Self::Next { epoch } => Reply::Next(store.next_exists(epoch)),
            Self::History { epoch } => Reply::History(store.history_of(epoch)),
            Self::CreateCommit { id, parent } => {
                let damaged = false;
                store
                    .commits
                    .entry(id)
                    .or_insert(Commit { parent, damaged });
                Reply::Done
            }
            Self::Delete { id } => {
                store.commits.remove(&id);
                Reply::Done
            }
            Self::CreateFinal { epoch, .. } => {
                store.end(epoch);
                Reply::Done
            }
            Self::CreateReleased { epoch } => {
                store.release(epoch);
                Reply::Done
            }
        }
    }
}

fn fault(transient: bool) -> Fault {
    Fault {
        transient,
        text: "the store does not answer".to_owned(),
    }
}

impl World {
    pub(super) fn begin(&mut self, agent: usize, kind: Kind) {
        let asked = self.clock(agent);
        let (waits_for, request) = match &kind {
            Kind::Probe | Kind::Status | Kind::Logs => (Stage::Only, Request::Nothing),
            Kind::Look => (Stage::Only, Request::Top),
            Kind::Claim { after } => self.begin_claim(agent, *after),
            Kind::Beat { epoch, .. } => {
                let (epoch, tag) = (*epoch, self.new_nonce());
                (Stage::Only, Request::PutBeat { epoch, tag })
            }
            Kind::Restore { epoch, .. } | Kind::Prune { epoch, .. } => {
                (Stage::List, Request::History { epoch: *epoch })
            }
            Kind::Publish { .. } => {
                let ms = self.upload_ms();
                (Stage::Transfer, Request::Transfer { ms })
            }
            Kind::Final { epoch, completed } => {
                let (epoch, completed) = (*epoch, *completed);
                (Stage::Only, Request::CreateFinal { epoch, completed })
            }
            Kind::Release { epoch } => (Stage::Only, Request::CreateReleased { epoch: *epoch }),
        };
        let id = self.new_operation();
        self.operations.insert(
            id,
            Operation {
                agent,
                kind,
                asked,
                waits_for,
            },
        );
        self.send(id, request);
    }

    fn begin_claim(&mut self, agent: usize, after: u64) -> (Stage, Request) {
        // A new one for each try: whether an earlier one got through is seen by its nonce.
        let nonce = self.new_nonce();
        self.remember(agent, nonce);
        let it = &mut self.agents[agent];
        it.nonce = nonce;
        let seen = it.seen.clone();
        let lapsed = matches!(
            &it.state.lease,
            crate::state::Lease::Seeking(seeking) if seeking.lapsed.is_some()
        );
        match seen {
            // It has expired, as far as we saw: look again whether it lives.
            Some(top) if !top.released && !lapsed && !self.is_dead(agent, top.nonce) => {
                (Stage::Tag, Request::Tag { epoch: after })
            }
            _ => (Stage::Base, Request::Base { after }),
        }
    }

    pub(super) fn cancel(&mut self, agent: usize, publish: bool) {
        let found = self.operations.iter().find(|(_, operation)| {
            let kind = match operation.kind {
                Kind::Publish { .. } => publish,
                Kind::Restore { .. } => !publish,
                _ => false,
            };
            operation.agent == agent && kind
        });
        let Some(id) = found.map(|(&id, _)| id) else {
            return;
        };
        let operation = self.operations.remove(&id).expect("found just now");
        self.deliver(agent, operation.failed(fault(true)));
    }

    fn finish(&mut self, id: usize, event: Event) {
        let operation = self.operations.remove(&id).expect("it is being advanced");
        self.deliver(operation.agent, event);
    }

    fn fail(&mut self, id: usize, transient: bool) {
        let operation = self.operations.remove(&id).expect("it is being advanced");
        let agent = operation.agent;
        self.deliver(agent, operation.failed(fault(transient)));
    }

    fn go_on(&mut self, id: usize, waits_for: Stage, request: Request) {
        let operation = self.operations.get_mut(&id).expect("it is being advanced");
        operation.waits_for = waits_for;
        self.send(id, request);
    }

    pub(super) fn advance_operation(&mut self, id: usize, reply: Option<Reply>) {
        let Operation {
            agent,
            ref kind,
            asked,
            waits_for,
        } = self.operations[&id];
        let kind = kind.clone();
        match kind {
            Kind::Claim { after } => self.advance_claim(id, agent, after, waits_for, reply),
            Kind::Beat { epoch, failed } => {
                self.advance_beat(id, (epoch, failed), asked, waits_for, reply);
            }
            Kind::Restore { .. } => self.advance_restore(id, agent, reply),
            Kind::Publish { .. } => self.advance_publish(id, agent, waits_for, reply),
            Kind::Prune { .. } => self.advance_prune(id, agent, waits_for, reply),
            Kind::Look => match reply {
                Some(Reply::Top(top)) => {
                    let sight = Ok(self.sight(agent, top.as_ref()));
                    self.agents[agent].seen = top;
                    self.finish(id, Event::Looked { asked, sight });
                }
                _ => self.fail(id, true),
            },
            Kind::Probe if reply.is_some() => {
                self.finish(id, Event::Probed(Ok(Verdict::Sound)));
            }
            Kind::Status if reply.is_some() => self.finish(id, Event::StatusWritten(Ok(()))),
            Kind::Logs if reply.is_some() => self.finish(id, Event::LogsWritten(Ok(()))),
            // Only an end that no later lease has made void is one.
            Kind::Final { epoch, .. } => match (waits_for, reply) {
                (Stage::Only, Some(_)) => self.go_on(id, Stage::Next, Request::Next { epoch }),
                (Stage::Next, Some(Reply::Next(None))) => {
                    self.finish(id, Event::FinalWritten(Ok(())));
                }
                _ => self.fail(id, true),
            },
            Kind::Release { .. } if reply.is_some() => {
                self.finish(id, Event::Released(Ok(())));
            }
            _ => self.fail(id, true),
        }
    }

    fn sight(&self, agent: usize, top: Option<&Top>) -> Sight {
        let Some(top) = top else {
            return Sight::Free { epoch: 0 };
        };
        let epoch = top.epoch;
        if top.ended {
            let status = "completed".to_owned();
            Sight::Done { epoch, status }
        } else if top.released {
            Sight::Free { epoch }
        } else if top.revoked {
            Sight::Revoked { epoch }
        } else {
            Sight::Held {
                epoch,
                tag: top.tag.to_string(),
                patience: Self::patience(),
                holder: "another".to_owned(),
                dead: self.is_dead(agent, top.nonce),
            }
        }
    }

    fn advance_claim(
        &mut self,
        id: usize,
        agent: usize,
        after: u64,
        waits_for: Stage,
        reply: Option<Reply>,
    ) {
        let asked = self.operations[&id].asked;
        let nonce = self.agents[agent].nonce;
        let claimed = |claim| Event::Claimed {
            asked,
            claim: Ok(claim),
        };
        match (waits_for, reply) {
            (Stage::Tag, Some(Reply::Tag(tag))) => {
                let seen = self.agents[agent].seen.as_ref().map(|top| top.tag);
                if seen == Some(tag) {
                    self.go_on(id, Stage::Base, Request::Base { after });
                } else {
                    self.finish(id, claimed(Claim::Taken));
                }
            }
            (Stage::Base, Some(Reply::Base(base))) => {
                let record = LeaseRecord {
                    nonce,
                    base,
                    revoked: false,
                };
                let epoch = after + 1;
                self.go_on(id, Stage::Create, Request::CreateLease { epoch, record });
            }
            (Stage::Create, Some(Reply::Nonce(winner))) if winner == nonce => {
                let late = self.clock(agent).since(asked) > Duration::from_millis(TTL_MS / 2);
                if late {
                    // Undated: as good as not ours.
                    return self.fail(id, true);
                }
                self.won(id, agent, after + 1);
            }
            (Stage::Create, Some(Reply::Nonce(_))) => self.finish(id, claimed(Claim::Taken)),
            _ => self.fail(id, true),
        }
    }

    fn won(&mut self, id: usize, agent: usize, epoch: u64) {
        let asked = self.operations[&id].asked;
        let base = self.store.base_of(epoch);
        self.agents[agent].parent = base;
        let base = base.map(|(_, step)| step);
        let claim = Ok(Claim::Ours { epoch, base });
        self.finish(id, Event::Claimed { asked, claim });
    }

    fn advance_beat(
        &mut self,
        id: usize,
        (epoch, failed): (u64, bool),
        asked: Moment,
        waits_for: Stage,
        reply: Option<Reply>,
    ) {
        let answered = |beat| Event::BeatAnswered { epoch, asked, beat };
        match (waits_for, reply) {
            (Stage::Only, put) => {
                let failed = put.is_none();
                let operation = self.operations.get_mut(&id).expect("it is being advanced");
                operation.kind = Kind::Beat { epoch, failed };
                self.go_on(id, Stage::Next, Request::Next { epoch });
            }
            (_, Some(Reply::Next(Some(revoked)))) => {
                let holder = "another".to_owned();
                self.finish(id, answered(Ok(Beat::Superseded { holder, revoked })));
            }
            (_, Some(Reply::Next(None))) if !failed => self.finish(id, answered(Ok(Beat::Held))),
            _ => self.finish(id, answered(Err(fault(true)))),
        }
    }

    fn advance_restore(&mut self, id: usize, agent: usize, reply: Option<Reply>) {
        let operation = self.operations.get_mut(&id).expect("it is being advanced");
        let Kind::Restore {
            left, bad, newest, ..
        } = &mut operation.kind
        else {
            return;
        };
        match (operation.waits_for, reply) {
            (Stage::List, Some(Reply::History(history))) => *left = history,
            (Stage::Transfer, Some(_)) => {
                // What was under way has arrived: good or not.
                let id = left.remove(0);
                let good = self.store.commits.get(&id).is_some_and(|c| !c.damaged);
                if good {
                    *newest = Some(id);
                } else {
                    *bad += 1;
                }
            }
            _ => return self.fail(id, true),
        }
        let (left, bad, newest) = (left.clone(), *bad, *newest);
        if let Some((_, step)) = newest {
            self.disk(agent).insert(step);
        }
        let local = self.disk(agent).last().copied();
        let next = left.first().copied();
        let enough = newest.is_some() || local >= next.map(|(_, step)| step);
        if !enough {
            let ms = self.upload_ms();
            return self.go_on(id, Stage::Transfer, Request::Transfer { ms });
        }
        if local.is_none() && bad > 0 {
            return self.fail(id, false);
        }
        let published = newest.or(next);
        self.agents[agent].parent = published;
        let restored = Restored {
            step: local,
            published: published.map(|(_, step)| step),
            bad: vec!["damaged".to_owned(); bad],
        };
        self.finish(id, Event::Restored(Ok(restored)));
    }

    /// Whether commits and deletions are allowed now.
    fn permits(&self, agent: usize) -> bool {
        let until = self.agents[agent].commit_until;
        until.is_some_and(|until| self.clock(agent) < until)
    }

    fn advance_publish(&mut self, id: usize, agent: usize, waits_for: Stage, reply: Option<Reply>) {
        let permitted = self.permits(agent);
        let parent = self.agents[agent].parent;
        let asked = self.operations[&id].asked;
        let took = self.clock(agent).since(asked);
        let operation = self.operations.get_mut(&id).expect("it is being advanced");
        let Kind::Publish { epoch, step, tries } = &mut operation.kind else {
            return;
        };
        let commit = (*epoch, *step);
        *tries += u32::from(waits_for == Stage::Commit);
        let again = waits_for == Stage::Commit && reply.is_none() && *tries < COMMIT_TRIES;
        let uploaded = waits_for == Stage::Transfer && reply.is_some();
        if (uploaded || again) && permitted {
            let request = Request::CreateCommit { id: commit, parent };
            return self.go_on(id, Stage::Commit, request);
        }
        if waits_for != Stage::Commit || reply.is_none() {
            return self.fail(id, true);
        }
        self.agents[agent].parent = Some(commit);
        let (epoch, step) = commit;
        let result = Ok(Published { bytes: 1, took });
        self.finish(
            id,
            Event::PublishEnded {
                epoch,
                step,
                result,
            },
        );
    }

    fn advance_prune(&mut self, id: usize, agent: usize, waits_for: Stage, reply: Option<Reply>) {
        let permitted = self.permits(agent);
        let operation = self.operations.get_mut(&id).expect("it is being advanced");
        let Kind::Prune { epoch, left } = &mut operation.kind else {
            return;
        };
        let base = self.store.base_of(*epoch);
        match (waits_for, reply) {
            (Stage::List, Some(Reply::History(history))) => {
                let settled = self.agents[agent].state.checkpoints.settled;
                let judged = history.into_iter().filter(|id| Some(id.1) <= settled);
                *left = judged.skip(KEEP).collect();
                left.retain(|&id| Some(id) != base);
            }
            (Stage::Delete, Some(_)) => {}
            _ => return self.fail(id, true),
        }
        match left.pop() {
            Some(oldest) if permitted => {
                self.go_on(id, Stage::Delete, Request::Delete { id: oldest });
            }
            _ => self.finish(id, Event::Pruned(Ok(()))),
        }
    }
}

impl Operation {
    /// The event that says that it did not work.
    fn failed(self, fault: Fault) -> Event {
        let asked = self.asked;
        match self.kind {
            Kind::Probe => Event::Probed(Err(fault)),
            Kind::Look => Event::Looked {
                asked,
                sight: Err(fault),
            },
            Kind::Claim { .. } => Event::Claimed {
                asked,
                claim: Err(fault),
            },
            Kind::Beat { epoch, .. } => Event::BeatAnswered {
                epoch,
                asked,
                beat: Err(fault),
            },
            Kind::Restore { .. } => Event::Restored(Err(fault)),
            Kind::Publish { epoch, step, .. } => Event::PublishEnded {
                epoch,
                step,
                result: Err(fault),
            },
            Kind::Prune { .. } => Event::Pruned(Err(fault)),
            Kind::Status => Event::StatusWritten(Err(fault)),
            Kind::Logs => Event::LogsWritten(Err(fault)),
            Kind::Final { .. } => Event::FinalWritten(Err(fault)),
            Kind::Release { .. } => Event::Released(Err(fault)),
        }
    }
}
