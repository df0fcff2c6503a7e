//! What the loop shows: its board, and the servers that hand it on. Called by the loop.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;

use super::{Executor, asks};
use crate::http::{Listen, Server, Settings, Source};
use crate::ingest::{Ingest, Lines, ParseLogs};
use crate::metrics::gpu::Gpus;
use crate::state::{Event, Level};
use crate::status::{self, Extra, JobInstance, JobStatus};

/// Commands that wait for the loop.
const COMMANDS_MAX: usize = 256;
/// How long readers have to hear the end; the agent leaves as soon as all have.
const GOODBYE: Duration = Duration::from_secs(1);

/// How the agent shows itself.
#[derive(Default)]
pub struct Face {
    pub http: Option<Settings>,
    /// The effective settings, without secrets.
    pub config: Value,
    pub parse_logs: ParseLogs,
    /// Whether the trainer may report over HTTP on loopback.
    pub ingest: bool,
}

/// What is being shown.
pub(super) struct Shown {
    server: Option<Server>,
    ingest: Option<Ingest>,
    asked: mpsc::Receiver<Event>,
    /// Kept so that `asked` never ends by itself.
    _ask: mpsc::Sender<Event>,
}

impl Shown {
    /// What people ask for and what a trainer reports.
    pub(super) async fn asked(&mut self) -> Option<Event> {
        match &mut self.ingest {
            Some(ingest) => tokio::select! {
                event = self.asked.recv() => event,
                Some(event) = ingest.next() => Some(event),
            },
            None => self.asked.recv().await,
        }
    }

    pub(super) async fn close(self) {
        if let Some(server) = self.server {
            server.close(GOODBYE).await;
        }
    }
}

impl Executor {
    /// Starts to show. What cannot be shown is said, and training goes on.
    pub(super) fn face(&mut self, face: Face) -> Shown {
        self.name_machine();
        let (ask, asked) = mpsc::channel(COMMANDS_MAX);
        self.lines = Lines::new(face.parse_logs);
        let ingest = face.ingest.then(|| {
            let learn = |token: &str| self.options.redactor.learn(token);
            Ingest::start(&self.options.run_dir, learn)
        });
        let ingest = match ingest.transpose() {
            Ok(ingest) => ingest,
            Err(error) => {
                self.say(
                    Level::Warning,
                    &format!("no reports of the trainer: {error}"),
                );
                None
            }
        };
        self.trainer_env = ingest.as_ref().map(Ingest::environment).unwrap_or_default();
        let server = face.http.and_then(|settings| {
            self.gpus = Gpus::watch();
            let source = Source {
                view: self.board.view(),
                logs: Arc::clone(&self.logs),
                commands: ask.clone(),
                store: Arc::clone(&self.options.store),
                store_requests: Arc::clone(&self.store_requests),
                job: self.options.job.clone(),
                run_dir: self.options.run_dir.clone(),
                gpus: self.gpus.clone(),
                config: face.config,
            };
            let started = Server::start(&settings, source);
            let server = match started {
                Ok(server) => server?,
                Err(error) => {
                    self.say(Level::Warning, &format!("nothing is served: {error}"));
                    return None;
                }
            };
            self.tell_address(&settings, &server);
            Some(server)
        });
        Shown {
            server,
            ingest,
            asked,
            _ask: ask,
        }
    }

    /// Says where the server is reached, to people and in the status.
    fn tell_address(&mut self, settings: &Settings, server: &Server) {
        let listen = server.listen();
        let switch = self.options.machine.switch.as_ref();
        let public = match listen {
            Listen::Tcp(address) if !listen.is_private() => {
                switch.and_then(|switch| switch.adapter().public_url(address.port()))
            }
            _ => None,
        };
        let url = public.unwrap_or_else(|| server.url());
        let who = if settings.access.is_open() {
            "for this machine only, without a token"
        } else {
            "to those who have a token"
        };
        self.say(Level::Info, &format!("served at {url}, {who}"));
        let fingerprint = settings
            .tls
            .as_ref()
            .map(|tls| tls.fingerprint().to_owned());
        if let Some(fingerprint) = &fingerprint {
            self.say(
                Level::Info,
                &format!("fingerprint of its certificate: {fingerprint}"),
            );
        }
        if let (Some(Listen::Tcp(wanted)), Listen::Tcp(address)) = (&settings.listen, listen)
            && wanted.port() != 0
            && wanted != address
        {
            self.say(Level::Warning, "the port that was asked for is taken");
        }
        let instance = self.more.instance.get_or_insert_with(JobInstance::default);
        instance.url = Some(url);
        instance.tls_fingerprint = fingerprint;
    }

    /// Whose machine this is, as far as that is known.
    fn name_machine(&mut self) {
        let Some(switch) = &self.options.machine.switch else {
            return;
        };
        let instance = switch.adapter().instance();
        self.more.provider = Some(instance.kind.name().to_owned());
        self.more.instance = Some(JobInstance {
            id: instance.id.clone(),
            region: instance.region.clone(),
            ..JobInstance::default()
        });
    }

    /// What the trainer's output says of its progress.
    pub(super) fn read_output(&mut self) -> Vec<Event> {
        let writes_events = self.state.progress.started;
        let reports = self.lines.read(&self.logs, writes_events);
        let reports = reports.into_iter().map(Box::new);
        reports.map(Event::Reported).collect()
    }

    /// Shows the present status if anything has changed.
    pub(super) fn show(&mut self) {
        let now = self.options.clock.now();
        let over = self.state.exited.is_some();
        if !over && !self.board.is_due(now) {
            return;
        }
        self.rev += 1;
        self.more.gpu = self.gpus.state().gpus().to_vec();
        let status = self.status();
        let ending = self.state.ending.is_some();
        self.board.can_save = self.state.progress.started;
        self.board.show(status, ending, over, now);
    }

    /// The status without output and with its secrets.
    fn status(&self) -> JobStatus {
        let extra = Extra {
            job: self.options.job.id(),
            rev: self.rev,
            attempt: self.attempt,
            started_at: &self.started_at,
            written_at: &asks::wall_time(),
            lines: &[],
            holder: &self.options.holder.agent,
            more: &self.more,
        };
        status::of(&self.state, &extra, self.options.clock.now())
    }
}
