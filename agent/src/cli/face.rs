//! Flags of `agent run` about what it shows, and to whom.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::error::Error;
use crate::http::{Access, Listen, Settings, Tls};
use crate::ingest::ParseLogs;
use crate::redact::Redactor;
use crate::run::Face;

#[derive(Debug, clap::Args)]
pub(super) struct FaceArgs {
    /// Address of the HTTP API and the dashboard, unix:/path for a socket of this user, or "off".
    /// Without AGENT_TOKEN only this machine can be served.
    #[arg(long, env = "AGENT_LISTEN", value_parser = listen, default_value = "127.0.0.1:8080")]
    listen: Place,
    /// Speak TLS with a certificate made at the start; clients know it by its fingerprint, which is
    /// printed and stands in the status.
    #[arg(long, env = "AGENT_TLS", value_enum)]
    tls: Option<TlsArg>,
    /// Speak TLS with this certificate (PEM, with the chain behind it).
    #[arg(
        long,
        env = "AGENT_TLS_CERT",
        requires = "tls_key",
        conflicts_with = "tls"
    )]
    tls_cert: Option<PathBuf>,
    /// The key of the certificate (PEM).
    #[arg(long, env = "AGENT_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Show /metrics without a token.
    #[arg(long, env = "AGENT_METRICS_OPEN")]
    metrics_open: bool,
    /// Show GPUs in /metrics by the names of NVIDIA's DCGM exporter as well.
    #[arg(long, env = "AGENT_DCGM_NAMES")]
    dcgm_names: bool,
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

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TlsArg {
    SelfSigned,
}

/// Where to listen, if anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place(pub(super) Option<Listen>);

pub(super) fn listen(text: &str) -> Result<Place, String> {
    if text == "off" {
        return Ok(Place(None));
    }
    if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
        return Ok(Place(Some(Listen::Unix(path.into()))));
    }
    // A port alone is all addresses of the machine.
    let all = text.starts_with(':').then(|| format!("0.0.0.0{text}"));
    let address = all.as_deref().unwrap_or(text).parse();
    let address = address.map_err(|_| {
        format!("expected an address such as 127.0.0.1:8080, unix:/path or off, got {text:?}")
    })?;
    Ok(Place(Some(Listen::Tcp(address))))
}

impl FaceArgs {
    /// What to show. Tokens are learned by the redactor, wherever they come from.
    pub(super) fn face(&self, redactor: &Redactor) -> Result<Face, Error> {
        let variable = |name: &str| std::env::var(name).ok();
        let access = Access::from_env(variable, |token| redactor.learn(token));
        let access = access.map_err(Error::Usage)?;
        let Place(listen) = &self.listen;
        if let Some(address) = listen.iter().find(|listen| !access.may_listen(listen)) {
            return Err(Error::Usage(format!(
                "--listen {address}: expected a token for an address that others can reach\n\
                 hint: set AGENT_TOKEN, or listen on 127.0.0.1"
            )));
        }
        let tls = match (&self.tls_cert, &self.tls_key, self.tls) {
            (Some(certificates), Some(key), _) => Some(Tls::from_files(certificates, key)),
            (_, _, Some(TlsArg::SelfSigned)) => Some(Tls::self_signed()),
            _ => None,
        };
        let tls = tls.transpose().map_err(Error::Usage)?;
        if tls.is_some() && matches!(listen, Some(Listen::Unix(_))) {
            let what = "expected a port for TLS, got a socket, which nobody reads on the way";
            return Err(Error::Usage(what.to_owned()));
        }
        Ok(Face {
            http: listen.clone().map(|listen| Settings {
                listen: Some(listen),
                tls,
                access,
                metrics_open: self.metrics_open,
                dcgm_names: self.dcgm_names,
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
    fn addresses_are_whole_or_a_port_or_a_path_or_off() {
        let tcp = |text: &str| Ok(Place(Some(Listen::Tcp(text.parse().unwrap()))));
        assert_eq!(listen("off"), Ok(Place(None)));
        assert_eq!(listen(":80"), tcp("0.0.0.0:80"));
        assert_eq!(listen("[::1]:80"), tcp("[::1]:80"));
        let path = Listen::Unix("/run/agent.sock".into());
        assert_eq!(listen("unix:/run/agent.sock"), Ok(Place(Some(path))));
        for wrong in ["", "80", "localhost", "1.2.3.4", "::", "unix:"] {
            assert!(listen(wrong).is_err(), "{wrong}");
        }
    }
}
