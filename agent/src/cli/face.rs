//! Flags of `agent run` about what it shows, and to whom.

use std::net::SocketAddr;

use clap::ValueEnum;

use crate::error::Error;
use crate::http::{Access, Settings};
use crate::ingest::ParseLogs;
use crate::redact::Redactor;
use crate::run::Face;

#[derive(Debug, clap::Args)]
pub(super) struct FaceArgs {
    /// Address of the HTTP API and the dashboard, or "off". Without AGENT_TOKEN only this machine
    /// can be served.
    #[arg(long, env = "AGENT_LISTEN", value_parser = listen, default_value = "127.0.0.1:8080")]
    listen: Listen,
    /// Show /metrics without a token.
    #[arg(long, env = "AGENT_METRICS_OPEN")]
    metrics_open: bool,
    /// Whether progress is read from the trainer's output: nanoGPT's lines, Hugging Face's
    /// dictionaries, "Epoch a/b … loss: x". By default until it writes an event.
    #[arg(long, env = "AGENT_PARSE_LOGS", value_enum, default_value = "auto", num_args = 0..=1,
          require_equals = true, default_missing_value = "always")]
    parse_logs: ParseArg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ParseArg {
    Auto,
    Always,
    Never,
}

/// An address, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listen(pub(super) Option<SocketAddr>);

pub(super) fn listen(text: &str) -> Result<Listen, String> {
    match text {
        "off" => Ok(Listen(None)),
        // All addresses of the machine.
        text if text.starts_with(':') => listen(&format!("0.0.0.0{text}")),
        text => {
            let address = text.parse();
            let address = address.map_err(|_| {
                format!("expected an address such as 127.0.0.1:8080 or off, got {text:?}")
            })?;
            Ok(Listen(Some(address)))
        }
    }
}

impl FaceArgs {
    /// What to show. Tokens are learned by the redactor, wherever they come from.
    pub(super) fn face(&self, redactor: &Redactor) -> Result<Face, Error> {
        let variable = |name: &str| std::env::var(name).ok();
        let access = Access::from_env(variable, |token| redactor.learn(token));
        let access = access.map_err(Error::Usage)?;
        let Listen(listen) = self.listen;
        if let Some(address) = listen.filter(|address| !access.may_listen(address)) {
            return Err(Error::Usage(format!(
                "--listen {address}: expected a token for an address that others can reach\n\
                 hint: set AGENT_TOKEN, or listen on 127.0.0.1"
            )));
        }
        Ok(Face {
            http: listen.map(|address| Settings {
                listen: Some(address),
                access,
                metrics_open: self.metrics_open,
            }),
            config: serde_json::Value::Null,
            parse_logs: match self.parse_logs {
                ParseArg::Auto => ParseLogs::Auto,
                ParseArg::Always => ParseLogs::Always,
                ParseArg::Never => ParseLogs::Never,
            },
            ingest: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_whole_or_a_port_or_off() {
        assert_eq!(listen("off"), Ok(Listen(None)));
        let all = "0.0.0.0:80".parse().unwrap();
        assert_eq!(listen(":80"), Ok(Listen(Some(all))));
        let one = "[::1]:80".parse().unwrap();
        assert_eq!(listen("[::1]:80"), Ok(Listen(Some(one))));
        for wrong in ["", "80", "localhost", "1.2.3.4", "::"] {
            assert!(listen(wrong).is_err(), "{wrong}");
        }
    }
}
