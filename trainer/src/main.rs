//! The program `trainer`: parses nothing itself, ends the process with the right exit code.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use trainer::{Error, cli};

/// The exit code of a crash: a fault of ours.
const CRASH: u8 = 1;

fn main() -> ExitCode {
    let started = Instant::now();
    let arguments = std::env::args_os().skip(1).map(|word| {
        word.into_string()
            .map_err(|word| Error::config(format!("the argument {word:?} is not valid UTF-8")))
    });
    let result = arguments
        .collect::<Result<_, _>>()
        .and_then(|words| cli::run(words, started));
    match result {
        Ok(code) => code.code().into(),
        Err(error) => {
            // A config may have several faults, each an error; others have one, and its details.
            let each_line = matches!(error, Error::Config(_));
            for (index, line) in error.to_string().lines().enumerate() {
                let is_fault = (each_line || index == 0) && !line.starts_with("hint: ");
                let prefix = if is_fault { "error: " } else { "" };
                // Nobody is left to tell if standard error is closed.
                writeln!(io::stderr(), "{prefix}{line}").ok();
            }
            error
                .exit_code()
                .map_or(CRASH, protocol::ExitCode::code)
                .into()
        }
    }
}
