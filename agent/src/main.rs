//! The program `agent`: the container's entry point.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use agent::child::exec;
use agent::error::ExitStatus;
use agent::{cli, deadman};

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments
        .first()
        .is_some_and(|first| first == exec::COMMAND)
    {
        let error = exec::run(arguments.drain(1..));
        // Nobody is left to tell if standard error is closed.
        writeln!(io::stderr(), "agent: {error}").ok();
        return error.exit_code().into();
    }
    if arguments
        .first()
        .is_some_and(|first| first == deadman::COMMAND)
    {
        return match deadman::run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                writeln!(io::stderr(), "agent: dead-man's switch: {error}").ok();
                ExitStatus::Bug.code().into()
            }
        };
    }
    let mut print = |text: &str| {
        writeln!(io::stdout(), "{}", text.trim_end()).ok();
    };
    match cli::main(arguments, &mut print) {
        Ok(status) => status.code().into(),
        Err(error) => {
            writeln!(io::stderr(), "agent: error: {error}").ok();
            error.exit_status().code().into()
        }
    }
}
