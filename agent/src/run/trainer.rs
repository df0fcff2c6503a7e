//! The trainer's side of the loop: its command line, its process, its files.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use protocol::{Manifest, RunDir};
use rustix::process::Signal as Unix;

use super::{Executor, Message, fault};
use crate::child::{self, Child, Command, Environment, Status};
use crate::state::{Event, Exit, Level, Signal};

/// A killed group is gone within this, or something of it is stuck in the kernel.
const KILL_MAX: Duration = Duration::from_secs(10);
/// What the trainer printed last is read within this after its end.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Times that the events file is read at once when the trainer has ended.
const LAST_READS_MAX: usize = 1024;
/// Stands for the run directory in the trainer's command line.
pub(super) const PLACEHOLDER: &str = "{run_dir}";

/// The trainer's command line: the run directory where it is asked for, else as our trainer takes
/// it; the last flag wins there.
pub fn command_line(command: &[String], run_dir: &Path) -> (OsString, Vec<OsString>) {
    let run_dir = run_dir.display().to_string();
    let named = command.iter().any(|word| word.contains(PLACEHOLDER));
    let mut words: Vec<OsString> = command
        .iter()
        .map(|word| word.replace(PLACEHOLDER, &run_dir).into())
        .collect();
    if !named {
        words.push(format!("--out_dir={run_dir}").into());
        words.push("--resume=auto".into());
    }
    let program = words.remove(0);
    (find_program(program), words)
}

/// A program that is not in the path but beside the agent is that one.
pub fn find_program(program: OsString) -> OsString {
    let bare = Path::new(&program).components().count() == 1;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).any(|folder| folder.join(&program).is_file());
    let beside = std::env::current_exe().ok();
    let beside = beside.and_then(|agent| Some(agent.parent()?.join(&program)));
    match beside {
        Some(beside) if bare && !in_path && beside.is_file() => beside.into(),
        _ => program,
    }
}

impl Executor {
    pub(super) fn start(&mut self) {
        self.attempt += 1;
        let attempt = self.attempt;
        let options = Arc::clone(&self.options);
        let run_dir = &options.run_dir;
        let (program, args) = command_line(&options.command, run_dir.root());
        let mut command = Command::new(program, args);
        let resume_from = newest_whole(run_dir).map(|step| run_dir.checkpoint(step));
        command.env = Environment::of_attempt(
            options.job.id(),
            attempt,
            self.state.epoch().unwrap_or(0),
            &run_dir.checkpoints(),
            resume_from.as_deref(),
            &run_dir.root().join("error.json"),
        );
        command.env.pass.clone_from(&options.pass_env);
        command.env.set.extend(self.trainer_env.iter().cloned());
        let sink = self.logs.begin(attempt);
        let event = match Child::spawn(&command, sink) {
            Ok(child) => {
                let child = Arc::new(child);
                self.child = Some(Arc::clone(&child));
                let pid = child.pid();
                let wait = async move {
                    let exit = child.wait().await;
                    // What it started and left behind goes with it.
                    child.kill_group(KILL_MAX).await.ok();
                    child.drained(DRAIN_MAX).await;
                    Message::ChildExited(exit)
                };
                self.spawn(wait, None);
                Ok(pid)
            }
            Err(error) => Err(fault(false, &error)),
        };
        self.tell.send(Message::Event(Event::Started(event))).ok();
    }

    pub(super) fn signal(&mut self, signal: Signal) {
        let number = match signal {
            Signal::Terminate => Unix::TERM,
            Signal::Save => Unix::USR1,
        };
        if let Some(child) = &self.child
            && let Err(error) = child.signal(number)
        {
            self.say(Level::Warning, &format!("signal to the trainer: {error}"));
        }
    }

    pub(super) fn kill_group(&mut self) {
        if let Some(child) = self.child.clone() {
            let tell = self.logs.clone();
            self.spawn(
                async move {
                    if let Err(survivors) = child.kill_group(KILL_MAX).await {
                        tell.note(&format!("{}warning: {survivors}", super::PREFIX));
                    }
                    Message::Event(Event::Tick)
                },
                None,
            );
        }
    }

    /// What the trainer wrote down since the last look.
    pub(super) fn follow(&mut self) -> Vec<Event> {
        if self.child.is_none() {
            return Vec::new();
        }
        let mut news = self.read_events(1);
        news.extend(self.read_output());
        news.extend(self.find_checkpoints());
        news
    }

    fn read_events(&mut self, times: usize) -> Vec<Event> {
        let mut news = Vec::new();
        for _ in 0..times {
            let polled = match self.events.poll() {
                Ok(polled) => polled,
                Err(error) => {
                    self.say(Level::Warning, &format!("events: {error}"));
                    break;
                }
            };
            news.extend(polled.records.into_iter().map(Event::Record));
            if !polled.more {
                break;
            }
        }
        news
    }

    pub(crate) fn find_checkpoints(&mut self) -> Vec<Event> {
        // One that cannot be listed now can be a moment later.
        let found = self.found.poll().unwrap_or_default();
        let found = found.into_iter();
        found
            .map(|found| Event::CheckpointFound { step: found.step })
            .collect()
    }

    pub(super) fn child_exited(&mut self, exit: child::Exit) -> Vec<Event> {
        let mut news = self.read_events(LAST_READS_MAX);
        news.extend(self.find_checkpoints());
        self.child = None;
        self.say(Level::Info, &format!("the trainer ended: {exit}"));
        let (code, signal) = match exit.status {
            Status::Code(code) => (Some(code), None),
            Status::Signal(number) => (None, Some(number)),
        };
        news.push(Event::Exited(Exit {
            code,
            signal,
            out_of_memory: exit.is_oom_kill(),
            local: newest_whole(&self.options.run_dir),
        }));
        news
    }
}

/// The newest checkpoint that has a manifest which can be read.
pub(crate) fn newest_whole(run_dir: &RunDir) -> Option<u64> {
    let entries = std::fs::read_dir(run_dir.checkpoints()).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let steps = names.filter_map(|name| RunDir::checkpoint_step(&name));
    let whole = steps.filter(|&step| {
        let manifest = run_dir.checkpoint(step).join(RunDir::MANIFEST);
        let text = std::fs::read_to_string(manifest);
        text.is_ok_and(|text| Manifest::parse(&text).is_ok())
    });
    whole.max()
}
