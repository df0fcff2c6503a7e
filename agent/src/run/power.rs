//! The loop's dealings with its machine: it shows that it lives, hears the provider, asks the
//! price, gives the machine back, tells whoever is not looking.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::asks::REQUEST_MAX;
use super::{Executor, Message, Options, PREFIX, fault, job_fault};
use crate::clock::Moment;
use crate::job::{BeatRecord, Holder, Job, LeaseRecord, read};
use crate::lease::{Look, Top};
use crate::machine::body;
use crate::provider::{
    Notice, NoticeKind, Outcome, PowerOff, Price, Services, ZOMBIE, environment, watch_notices,
};
use crate::state::{Alert, Command, Event, Fault, Level};
use crate::storage::{Keys, Storage};
use crate::supervisor::limits;

/// Between two questions for the price: spot prices move slowly.
const PRICE_EVERY: Duration = Duration::from_secs(15 * 60);
/// The first answers may be late.
const PRICE_SOON: Duration = Duration::from_secs(60);
const PRICE_SOON_TIMES: u32 = 5;
/// Former holders that are asked what the job had cost.
const EPOCHS_ASKED_MAX: usize = 8;
/// Between two lines to the dead-man's switch.
const PULSE_EVERY: Duration = Duration::from_secs(1);

impl Executor {
    /// Shows the dead-man's switch that this loop turns, and when it must not any more.
    pub(super) fn show_life(&mut self) {
        let now = self.options.clock.now();
        if self.pulsed.is_some_and(|at| now.since(at) < PULSE_EVERY) {
            return;
        }
        self.pulsed = Some(now);
        let hard = limits::hard(&self.state).map(|(_, at)| at);
        if let Err(error) = self.options.machine.pulse.beat(hard) {
            self.say(Level::Warning, &format!("the dead-man's switch: {error}"));
        }
    }

    /// Starts to ask for the price, and to hear what the provider says of itself.
    pub(super) fn hear_the_provider(&self) -> mpsc::UnboundedReceiver<Notice> {
        let (tell, notices) = mpsc::unbounded_channel();
        let Some(switch) = self.options.machine.switch.clone() else {
            return notices;
        };
        let instance = switch.adapter().instance().clone();
        let services = Services::new(&environment());
        tokio::spawn(async move { watch_notices(&instance, services, tell).await });
        let tell = self.tell.clone();
        tokio::spawn(async move {
            let mut asked = 0;
            while !tell.is_closed() {
                let price = switch.adapter().price().await;
                asked += 1;
                let soon = price.is_none() && asked <= PRICE_SOON_TIMES;
                if let Some(price) = price {
                    // Nobody listens any more only when the agent ends.
                    tell.send(Message::Event(Event::Priced(price))).ok();
                }
                sleep(if soon { PRICE_SOON } else { PRICE_EVERY }).await;
            }
        });
        notices
    }

    /// Whether somebody else has had the epoch that this run was to begin with.
    pub(super) fn comes_late(&self, look: &Look) -> bool {
        let first = self.options.first_epoch.filter(|_| self.lease.is_none());
        let passed = first.is_some_and(|first| look.epoch() >= first);
        let top = look.top.as_ref();
        passed && !top.is_some_and(|top| self.local.made(&top.record.nonce))
    }

    pub(super) fn noticed(&mut self, notice: Notice) {
        let Notice {
            source,
            kind,
            grace,
        } = notice;
        let seconds = grace.as_secs();
        self.say(
            Level::Warning,
            &format!("notice by {source}: {kind:?}, {seconds} s"),
        );
        self.happen(match kind {
            NoticeKind::Rebalance => Event::Command(Command::Save),
            NoticeKind::Terminate => Event::Notice { source, grace },
        });
    }

    /// Asks the store with other keys, which are as secret as the first.
    pub(super) fn renew(&self, keys: &Keys) {
        let options = &self.options;
        for secret in [&keys.secret_access_key, &keys.session_token] {
            options.redactor.learn(secret);
        }
        if let Err(why) = options.store.renew(keys) {
            self.say(Level::Warning, &why);
        }
    }

    /// Gives the machine back; answered when that is done or can never be.
    pub(super) fn power_off(&self, how: PowerOff) {
        let switch = self.options.machine.switch.clone();
        let logs = Arc::clone(&self.logs);
        let webhook = self.options.machine.webhook.clone();
        let (job, agent) = (self.options.job.clone(), self.options.holder.agent.clone());
        let cost = self.state.meter.total(self.options.clock.now());
        let work = async move {
            let Some(switch) = switch else {
                return Message::Event(Event::PoweredOff(Ok(())));
            };
            for request in switch.requests(how) {
                logs.note(&format!("{PREFIX}giving the machine back: {request}"));
            }
            let say = |text: String| {
                logs.note(&format!("{PREFIX}warning: {text}"));
                // It stays on, and somebody pays.
                if let Some(webhook) = webhook.clone().filter(|_| text.starts_with(ZOMBIE)) {
                    let body = body(job.id(), &agent, "machine_stays_on", &text, cost);
                    tokio::spawn(async move { webhook.send(&body).await.ok() });
                }
            };
            let result = match switch.power_off(how, say).await {
                Outcome::Accepted | Outcome::AlreadyGone => Ok(()),
                Outcome::Denied(why) => Err(fault(false, &why)),
                Outcome::Retry { after, why } => {
                    sleep(after).await;
                    Err(fault(true, &why))
                }
            };
            Message::Event(Event::PoweredOff(result))
        };
        self.spawn(work, None);
    }

    /// Tells the webhook; nothing waits for it.
    pub(super) fn alert(&self, alert: &Alert, now: Moment) {
        let Some(webhook) = self.options.machine.webhook.clone() else {
            return;
        };
        let (job, agent) = (self.options.job.id(), &self.options.holder.agent);
        let cost = self.state.meter.total(now);
        let body = body(job, agent, &alert.event, &alert.text, cost);
        let logs = Arc::clone(&self.logs);
        tokio::spawn(async move {
            if let Err(why) = webhook.send(&body).await {
                logs.note(&format!("{PREFIX}warning: the webhook: {why}"));
            }
        });
    }

    /// What the job has cost, if anybody knows.
    pub(super) fn cost_usd(&self) -> Option<f64> {
        let meter = &self.state.meter;
        let total = meter.total(self.options.clock.now());
        (meter.price().is_some() || total > 0.0).then_some(total)
    }
}

/// What the job has cost until now, and what of that was its last holder's machine. Dollars.
pub(super) async fn spent_until_now(
    options: &Options,
    last: Option<&Top>,
    now: Moment,
    price: Option<&Price>,
) -> Result<(f64, f64), Fault> {
    let Some(Top { record, .. }) = last else {
        return Ok((0.0, 0.0));
    };
    let (store, job) = (&*options.store, &options.job);
    let (total, own) = spent_before(store, job, record.epoch).await?;
    let up = now.since(Moment::since_boot(Duration::ZERO));
    let stopped = spent_while_stopped(store, job, record, &options.holder, (up, price)).await;
    Ok((total + stopped, own))
}

/// What the disk of this machine has cost since the last holder's last sign of life, if that was
/// on this machine and it was stopped meanwhile: then nobody counted, but its storage was paid for.
/// Dollars.
async fn spent_while_stopped(
    store: &dyn Storage,
    job: &Job,
    last: &LeaseRecord,
    ours: &Holder,
    (up, price): (Duration, Option<&Price>),
) -> f64 {
    let (Some(instance), Some(price)) = (&ours.instance, price) else {
        return 0.0;
    };
    let same =
        last.holder.provider == ours.provider && last.holder.instance.as_ref() == Some(instance);
    if !same || last.holder.boot == ours.boot {
        return 0.0;
    }
    let beat = timeout(REQUEST_MAX, store.list(&job.beat(last.epoch), None, 1)).await;
    let Ok(Ok(beat)) = beat else {
        return 0.0;
    };
    let age = beat.first().and_then(|entry| entry.age_s).unwrap_or(0);
    let stopped = Duration::from_secs(age).saturating_sub(up);
    stopped.as_secs_f64() / 3600.0 * price.storage_per_hour
}

/// What the job had cost when the holder of this epoch, or one before it that said so, gave its
/// last sign of life; and what of that was its own machine.
async fn spent_before(store: &dyn Storage, job: &Job, epoch: u64) -> Result<(f64, f64), Fault> {
    for epoch in (1..=epoch).rev().take(EPOCHS_ASKED_MAX) {
        let beat = timeout(REQUEST_MAX, read::<BeatRecord>(store, &job.beat(epoch))).await;
        match beat {
            Ok(Ok(beat)) => return Ok((beat.spent_usd, beat.machine_usd)),
            Ok(Err(error)) if error.is_transient() => return Err(job_fault(&error)),
            // It died before its first beat, or what it wrote is not to be read.
            Ok(Err(_)) => {}
            Err(_) => return Err(fault(true, &"the store does not answer")),
        }
    }
    Ok((0.0, 0.0))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::clock::Clock;
    use crate::job::{LeaseReason, Nonce, VERSION};
    use crate::provider::PriceSource;
    use crate::storage::memory::Memory;

    struct Hands(Mutex<Moment>);

    impl Clock for Hands {
        fn now(&self) -> Moment {
            *self.0.lock().unwrap()
        }
    }

    fn holder(instance: &str, boot: &str) -> Holder {
        Holder {
            agent: "host:1".to_owned(),
            boot: boot.to_owned(),
            provider: Some("vast".to_owned()),
            instance: Some(instance.to_owned()),
            gpu: None,
        }
    }

    #[tokio::test]
    async fn the_disk_of_a_machine_that_was_stopped_is_paid_for() {
        let hands = Arc::new(Hands(Mutex::new(Moment::since_boot(Duration::ZERO))));
        let store = Memory::with_clock(hands.clone());
        let job = Job::new("j").unwrap();
        store.put(&job.beat(3), "{}".into()).await.unwrap();
        let last = LeaseRecord {
            version: VERSION,
            epoch: 3,
            nonce: Nonce::from_bits(1),
            holder: holder("i-1", "first boot"),
            ttl_ms: 60_000,
            base: None,
            attempt: 1,
            reason: LeaseReason::First,
        };
        let price = Price {
            per_hour: 3.0,
            storage_per_hour: 0.1,
            source: PriceSource::Provider,
        };
        // Five hours after its last beat it is up again, for half an hour now.
        *hands.0.lock().unwrap() = Moment::since_boot(Duration::from_secs(5 * 3600));
        let spent = async |ours: Holder, price| {
            let up = Duration::from_secs(1800);
            spent_while_stopped(&store, &job, &last, &ours, (up, price)).await
        };
        let usd = spent(holder("i-1", "second boot"), Some(&price)).await;
        assert!((usd - 0.45).abs() < 1e-9, "{usd}");
        // Another machine, one that was never off, one of unknown price.
        assert_eq!(spent(holder("i-2", "second boot"), Some(&price)).await, 0.0);
        assert_eq!(spent(holder("i-1", "first boot"), Some(&price)).await, 0.0);
        assert_eq!(spent(holder("i-1", "second boot"), None).await, 0.0);
    }
}
