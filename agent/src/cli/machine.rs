//! Flags of the machine and of the limits, shared by the commands that run trainers, and what they
//! come to on the machine that we are on.

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;

use super::duration;
use crate::clock::{BootClock, Clock, Moment};
use crate::cost::{Disk, Table};
use crate::deadman::Orders;
use crate::error::Error;
use crate::limits::{Age, Limits, Timer};
use crate::machine::{Switch, Webhook};
use crate::provider::{
    Adapter, Instance, Kind, PowerOff, Price, PriceSource, Services, detect, environment,
};
use crate::state::Settings;

/// Whose machine it is, what it costs, and how it is given back.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct MachineFlags {
    /// Whose machine this is [default: found out]: vast, runpod, lambda, modal, jarvislabs, aws,
    /// gcp, azure, paperspace, colab, replicate, kubernetes, slurm or local.
    #[arg(long, env = "AGENT_PROVIDER")]
    provider: Option<Kind>,
    /// How the machine is given back at the end [default: destroy where the provider is recognised
    /// for certain, none elsewhere].
    #[arg(long, env = "AGENT_TERMINATE", value_enum)]
    terminate: Option<Terminate>,
    /// A command (for sh -c) that gives the machine back, instead of asking the provider.
    #[arg(long, env = "AGENT_POWER_OFF_COMMAND")]
    power_off_command: Option<String>,
    /// Dollars an hour, where the provider does not say.
    #[arg(long, env = "AGENT_PRICE", value_parser = dollars)]
    price: Option<f64>,
    /// Size of the disk that is paid for, where the table of prices is used.
    #[arg(long, env = "AGENT_DISK_GB", value_parser = dollars)]
    disk_gb: Option<f64>,
    /// Address that takes events by POST: parts of the budget, limits, a machine that stays on.
    #[arg(long, env = "AGENT_WEBHOOK", hide_env_values = true)]
    webhook: Option<String>,
    /// An agent that shows no life for so long is ended, and its machine with it.
    #[arg(long, env = "AGENT_HANG", value_parser = duration, default_value = "2m")]
    hang: Duration,
}

/// Limits of time and money. Each is a duration such as 90s, 15m or 24h, or `off`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct LimitFlags {
    /// From the container's start to the moment that the machine is off.
    #[arg(long, env = "AGENT_MAX_WALL", value_parser = limit, default_value = "24h")]
    max_wall: Limit,
    /// With nothing to do: no trainer, no restore, no upload, no command.
    #[arg(long, env = "AGENT_IDLE", value_parser = limit, default_value = "30m")]
    idle: Limit,
    /// A trainer that trains and reports nothing for so long is restarted.
    #[arg(long, env = "AGENT_STALL", value_parser = limit, default_value = "15m")]
    stall: Limit,
    /// Until the store is known to work.
    #[arg(long, env = "AGENT_BOOT_DEADLINE", value_parser = limit, default_value = "15m")]
    boot_deadline: Limit,
    /// From then on until the lease is ours.
    #[arg(long, env = "AGENT_CLAIM_DEADLINE", value_parser = limit, default_value = "30m")]
    claim_deadline: Limit,
    /// For a trainer's preparation of its data.
    #[arg(long, env = "AGENT_FETCH_DEADLINE", value_parser = limit, default_value = "2h")]
    fetch_deadline: Limit,
    /// For bringing the checkpoint here.
    #[arg(long, env = "AGENT_RESTORE_DEADLINE", value_parser = limit, default_value = "1h")]
    restore_deadline: Limit,
    /// With the lease and without a first step, data and restore aside; then the lease is left to
    /// another machine.
    #[arg(long, env = "AGENT_FIRST_STEP_DEADLINE", value_parser = limit, default_value = "45m")]
    first_step_deadline: Limit,
    /// Dollars that the job may cost, all its machines together.
    #[arg(long, env = "AGENT_BUDGET", value_parser = dollars)]
    budget: Option<f64>,
    /// Dollars that this machine may cost while it stands by for another.
    #[arg(long, env = "AGENT_STANDBY_BUDGET", value_parser = dollars)]
    standby_budget: Option<f64>,
    /// Somebody must say this often that the job is still wanted.
    #[arg(long, env = "AGENT_KEEPALIVE", value_parser = limit, default_value = "off")]
    keepalive: Limit,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Terminate {
    /// The machine stays on.
    None,
    /// What the provider calls stop; its disk may go on costing money.
    Stop,
    /// Nothing is left and nothing costs.
    Destroy,
}

/// A limit of time; `None` = off.
#[derive(Clone, Copy, Debug)]
struct Limit(Option<Duration>);

fn limit(text: &str) -> Result<Limit, String> {
    if text == "off" {
        return Ok(Limit(None));
    }
    let time = duration(text)?;
    if time.is_zero() {
        return Err("expected a time above 0, or off".to_owned());
    }
    Ok(Limit(Some(time)))
}

fn dollars(text: &str) -> Result<f64, String> {
    let number = text.strip_prefix('$').unwrap_or(text).parse::<f64>().ok();
    let sound = number.filter(|number| number.is_finite() && *number >= 0.0);
    sound.ok_or_else(|| format!("expected a number of 0 or more, got {text:?}"))
}

impl MachineFlags {
    /// What the dead-man's switch is told.
    pub(super) fn orders(&self, limits: &LimitFlags) -> Orders {
        let terminate = self.terminate.map(|how| match how {
            Terminate::None => PowerOff::None,
            Terminate::Stop => PowerOff::Stop,
            Terminate::Destroy => PowerOff::Destroy,
        });
        // Off means off for the agent, which can say what is wrong; nobody else can for it.
        let boot = limits.boot_deadline.0.or(Limits::default().boot);
        Orders::new(
            self.hang,
            boot.unwrap_or(self.hang).max(self.hang),
            terminate,
            self.provider,
            self.power_off_command.clone(),
        )
    }

    /// # Errors
    /// If the address is none.
    pub(super) fn webhook(&self) -> Result<Option<Webhook>, Error> {
        let webhook = self.webhook.as_deref().map(Webhook::new).transpose();
        webhook.map_err(Error::Usage)
    }
}

/// The machine that we are on.
pub(super) struct Found {
    /// When it was found: ages and times left count from here.
    at: Moment,
    pub(super) switch: Arc<Switch>,
    pub(super) limits: Limits,
    pub(super) age: Age,
    pub(super) price: Option<Price>,
    pub(super) power_off: PowerOff,
}

impl Found {
    /// Finds out whose machine this is.
    pub(super) async fn out(machine: &MachineFlags, limits: &LimitFlags) -> Self {
        let environment = environment();
        let services = Services::new(&environment);
        let instance = detect(&environment, machine.provider, &services).await;
        let now = BootClock.now();
        let power_off = machine.orders(limits).power_off(instance.kind);
        let adapter = Adapter::new(instance, services, environment);
        let instance = adapter.instance();
        let up = now.since(Moment::since_boot(Duration::ZERO));
        let limits = Limits {
            wall: limits.max_wall.0,
            idle: limits.idle.0,
            stall: limits.stall.0,
            boot: limits.boot_deadline.0,
            claim: limits.claim_deadline.0,
            restore: limits.restore_deadline.0,
            fetch: limits.fetch_deadline.0,
            first_step: limits.first_step_deadline.0,
            budget_usd: limits.budget,
            standby_usd: limits.standby_budget,
            keepalive: limits.keepalive.0,
            provider: instance.ends_in,
        };
        Self {
            at: now,
            age: Age::of_this_machine(instance.kind, up),
            price: price(machine, instance),
            switch: Arc::new(Switch::new(adapter, machine.power_off_command.clone())),
            limits,
            power_off,
        }
    }

    /// # Errors
    /// If a limit cannot be held here: better to know that now than at the limit.
    pub(super) fn check(&self, machine: &MachineFlags) -> Result<(), Error> {
        let kind = self.switch.adapter().instance().kind;
        let wants = matches!(
            machine.terminate,
            Some(Terminate::Stop | Terminate::Destroy)
        );
        if wants && self.power_off == PowerOff::None {
            let what = "--terminate: expected a machine whose provider is recognised, got none\n\
                        hint: --provider NAME, or --power-off-command";
            return Err(Error::Usage(what.to_owned()));
        }
        let money = self.limits.budget_usd.or(self.limits.standby_usd);
        if money.is_some() && self.price.is_none() && !kind.tells_price() {
            let what = "--budget: nobody knows what this machine costs\nhint: --price";
            return Err(Error::Usage(what.to_owned()));
        }
        if let Some(wall) = self.limits.wall.filter(|wall| self.age.wall >= *wall) {
            let hours = |time: Duration| time.as_secs_f64() / 3600.0;
            let what = format!(
                "--max-wall: this container has been up for {:.1} h, longer than {:.1} h\n\
                 hint: a longer --max-wall, or off",
                hours(self.age.wall),
                hours(wall)
            );
            return Err(Error::Usage(what));
        }
        Ok(())
    }

    /// The moment that this machine must be off, and by which limit.
    pub(super) fn hard(&self) -> Option<(Timer, Moment)> {
        let began = self.at - self.age.wall;
        let limits = [
            (Timer::Wall, self.limits.wall.map(|wall| began + wall)),
            (
                Timer::Provider,
                self.limits.provider.map(|left| self.at + left),
            ),
        ];
        let there = limits
            .into_iter()
            .filter_map(|(timer, at)| Some((timer, at?)));
        there.min_by_key(|&(_, at)| at)
    }

    /// Limits and ages as they are now, however long ago the machine was found.
    pub(super) fn fill(&self, settings: &mut Settings) {
        let past = BootClock.now().since(self.at);
        settings.limits = self.limits;
        settings.limits.provider = self.limits.provider.map(|left| left.saturating_sub(past));
        settings.age = Age {
            wall: self.age.wall + past,
            paid: self.age.paid + past,
        };
        settings.price.clone_from(&self.price);
        settings.power_off = self.power_off;
    }

    /// One line for people.
    pub(super) fn describe(&self) -> String {
        let instance = self.switch.adapter().instance();
        let at_end = match self.power_off {
            PowerOff::None => "stays on",
            PowerOff::Stop => "is stopped",
            PowerOff::Destroy => "is destroyed",
        };
        let price = match &self.price {
            Some(price) => format!("${:.2} an hour", price.per_hour + price.storage_per_hour),
            None if self.limits.budget_usd.is_some() => {
                "price unknown, so --budget waits for the provider to say it".to_owned()
            }
            None => "price unknown".to_owned(),
        };
        let kind = instance.kind.name();
        let found_by = &instance.found_by;
        format!("machine: {kind} (by {found_by}), {price}; at the end it {at_end}")
    }
}

/// What is known of the price before the provider was asked.
fn price(machine: &MachineFlags, instance: &Instance) -> Option<Price> {
    if let Some(per_hour) = machine.price {
        return Some(Price {
            per_hour,
            storage_per_hour: 0.0,
            source: PriceSource::Job,
        });
    }
    let disk = Disk {
        gb: machine.disk_gb.unwrap_or_default(),
    };
    let table = Table::shipped();
    let (model, count) = gpus();
    let of_type = instance.machine.as_deref();
    let of_gpu = model.as_deref();
    let names = [(of_type, 1), (of_gpu, count), (of_type, count)];
    let mut found = names
        .into_iter()
        .filter_map(|(name, count)| table.price(instance.kind, name?, count, instance.spot, disk));
    found.next().map(|(price, _)| price)
}

/// The name that the driver gives the first GPU, and how many there are.
pub(super) fn gpus() -> (Option<String>, u32) {
    let Ok(entries) = std::fs::read_dir("/proc/driver/nvidia/gpus") else {
        return (None, 0);
    };
    let files = entries.filter_map(|entry| Some(entry.ok()?.path().join("information")));
    let texts: Vec<String> = files
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .collect();
    let model = texts.iter().find_map(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("Model:"));
        line.map(|model| model.trim().to_owned())
    });
    (model, u32::try_from(texts.len()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_times_or_written_off() {
        assert_eq!(limit("off").unwrap().0, None);
        assert_eq!(limit("15m").unwrap().0, Some(Duration::from_secs(900)));
        for wrong in ["0", "never", "", "-1s"] {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
        assert_eq!(dollars("$2.50"), Ok(2.5));
        assert!(dollars("-1").is_err() && dollars("nan").is_err());
    }
}
