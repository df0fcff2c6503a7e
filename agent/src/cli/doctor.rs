//! `agent doctor`: whether this machine is fit for a job, a line for each thing.

use std::path::PathBuf;

use super::face::Place;
use crate::doctor::{Asked, examine};
use crate::error::{Error, ExitStatus};
use crate::provider::{Kind, environment};

#[derive(Debug, clap::Args)]
pub(super) struct Doctor {
    /// Look at this store, too: s3://bucket/prefix or a folder. What is written is removed again.
    #[arg(long, env = "AGENT_STORE")]
    store: Option<String>,
    /// Who rents the machine out [default: as found].
    #[arg(long, env = "AGENT_PROVIDER")]
    provider: Option<Kind>,
    /// The trainer's directory on this machine.
    #[arg(long, env = "AGENT_RUN_DIR", default_value = "runs")]
    run_dir: PathBuf,
    /// Address of the HTTP API: host:port, unix:/path or off.
    #[arg(long, env = "AGENT_LISTEN", value_parser = super::face::listen,
          default_value = "127.0.0.1:8080")]
    listen: Place,
    /// Dollars an hour, where the provider does not say.
    #[arg(long, env = "AGENT_PRICE")]
    price: Option<f64>,
    /// One JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) async fn obey(self, print: &mut dyn FnMut(&str)) -> Result<ExitStatus, Error> {
        let asked = Asked {
            store: self.store,
            provider: self.provider,
            run_dir: self.run_dir,
            listen: self.listen.0,
            price: self.price,
            environment: environment(),
        };
        let report = examine(&asked).await;
        if self.json {
            let text = serde_json::to_string(&report);
            print(&text.map_err(|error| Error::Bad(error.to_string()))?);
        } else {
            for line in report.lines() {
                print(&line);
            }
        }
        Ok(report.exit().unwrap_or(ExitStatus::Completed))
    }
}
