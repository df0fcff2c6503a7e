//! `agent provider` and `agent power-off`: whose machine this is, and how it is given back. The
//! dead-man's switch calls the latter as a process of its own.

use std::sync::Arc;

use clap::ValueEnum;

use crate::error::{Error, ExitStatus};
use crate::provider::{self as providers};
use crate::provider::{
    Adapter, Environment, Instance, Kind, Outcome, Price, Services, detect,
    environment as environment_here, sources,
};

#[derive(Debug, clap::Args)]
struct Machine {
    /// Who rents the machine out [default: as found].
    #[arg(long, env = "AGENT_PROVIDER")]
    provider: Option<Kind>,
    /// The provider's name of the machine, if not this one; of Google's and Azure's its whole path.
    #[arg(long)]
    instance: Option<String>,
    /// Where it stands; of EC2's only.
    #[arg(long)]
    region: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Show {
    #[command(flatten)]
    machine: Machine,
    /// Show the public address of this port.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Show what would be sent at the end.
    #[arg(long, env = "AGENT_TERMINATE", value_enum, default_value = "destroy")]
    terminate: How,
}

#[derive(Debug, clap::Args)]
pub(super) struct PowerOff {
    #[command(flatten)]
    machine: Machine,
    /// Destroy leaves nothing that costs; stop keeps the disk, which does.
    #[arg(long, value_enum, default_value = "destroy")]
    terminate: How,
    /// Only show what would be sent.
    #[arg(long)]
    dry_run: bool,
    /// Try once instead of until it is gone.
    #[arg(long, conflicts_with = "dry_run")]
    once: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum How {
    None,
    Stop,
    Destroy,
}

impl From<How> for providers::PowerOff {
    fn from(how: How) -> Self {
        match how {
            How::None => Self::None,
            How::Stop => Self::Stop,
            How::Destroy => Self::Destroy,
        }
    }
}

impl Machine {
    async fn adapter(self) -> Adapter {
        let environment = self.environment();
        let services = Services::new(&environment);
        let instance = detect(&environment, self.provider, &services).await;
        let elsewhere = self.instance.is_some() && {
            let here = detect(&environment_here(), self.provider, &services).await;
            here.id != instance.id
        };
        let adapter = Adapter::new(instance, services, environment);
        if elsewhere {
            adapter.elsewhere()
        } else {
            adapter
        }
    }

    /// The process's environment, but for who the machine is if that was said.
    fn environment(&self) -> Environment {
        let (instance, region) = (self.instance.clone(), self.region.clone());
        let own = environment_here();
        Arc::new(move |name| match name {
            "AGENT_INSTANCE_ID" if instance.is_some() => instance.clone(),
            "CONTAINER_ID" | "RUNPOD_POD_ID" | "MODAL_TASK_ID" | "SLURM_JOB_ID" | "HOSTNAME"
                if instance.is_some() =>
            {
                None
            }
            "AWS_REGION" if region.is_some() => region.clone(),
            _ => own(name),
        })
    }
}

pub(super) async fn show(show: Show, print: &mut dyn FnMut(&str)) -> Result<ExitStatus, Error> {
    let adapter = show.machine.adapter().await;
    // It looks at the machine, too, which some need before they can say how it is ended.
    let price = adapter.price().await;
    for line in about(adapter.instance(), price) {
        print(&line);
    }
    let url = adapter.public_url(show.port);
    let url = url.unwrap_or_else(|| "unknown".to_owned());
    print(&format!("address of port {}: {url}", show.port));
    let grace_s = adapter.default_grace().as_secs();
    print(&format!("from a signal to the end: {grace_s} s"));
    let notices = sources(adapter.instance().kind).join(", ");
    print(&format!("notices: {notices}"));
    print(&format!("--terminate {}:", word(show.terminate)));
    for request in adapter.requests(show.terminate.into()) {
        print(&format!("  {request}"));
    }
    Ok(ExitStatus::Completed)
}

pub(super) async fn power_off(
    order: PowerOff,
    print: &mut dyn FnMut(&str),
) -> Result<ExitStatus, Error> {
    let adapter = order.machine.adapter().await;
    let how = order.terminate.into();
    if order.dry_run {
        // It looks at the machine, which some need before they can say how it is ended.
        adapter.price().await;
        for request in adapter.requests(how) {
            print(&request);
        }
        return Ok(ExitStatus::Completed);
    }
    let outcome = if order.once {
        adapter.power_off(how).await
    } else {
        adapter.power_off_until_gone(how, |line| print(&line)).await
    };
    match outcome {
        Outcome::Accepted => {
            print("accepted");
            Ok(ExitStatus::Completed)
        }
        Outcome::AlreadyGone => {
            print("gone already");
            Ok(ExitStatus::Completed)
        }
        Outcome::Denied(why) => Err(Error::Bad(format!("denied: {why}"))),
        Outcome::Retry { why, .. } => {
            print(&format!("not now: {why}"));
            Ok(ExitStatus::Retryable)
        }
    }
}

/// Who the machine is and what it costs.
fn about(instance: &Instance, price: Option<Price>) -> Vec<String> {
    let or_unknown = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".to_owned());
    let mut lines = vec![
        format!("provider: {} (by {})", instance.kind, instance.found_by),
        format!("instance: {}", or_unknown(&instance.id)),
        format!("region: {}", or_unknown(&instance.region)),
        format!("machine: {}", or_unknown(&instance.machine)),
    ];
    if let Some(spot) = instance.spot {
        let text = if spot { "yes" } else { "no" };
        lines.push(format!("spot: {text}"));
    }
    if let Some(left) = instance.ends_in {
        let hours = left.as_secs_f64() / 3600.0;
        lines.push(format!(
            "the provider ends it in {hours:.1} h at the latest"
        ));
    }
    lines.push(match price {
        Some(price) => {
            let total = price.per_hour + price.storage_per_hour;
            format!("price: ${total:.4} an hour")
        }
        None => "price: the provider does not say".to_owned(),
    });
    lines
}

fn word(how: How) -> &'static str {
    match how {
        How::None => "none",
        How::Stop => "stop",
        How::Destroy => "destroy",
    }
}
