//! The agent's command.

use std::env;
use std::process::ExitCode;

use agent::child::exec;

#[expect(clippy::print_stderr, reason = "this is the program, not the library")]
fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    if args.next().is_some_and(|first| first == exec::COMMAND) {
        let error = exec::run(args);
        eprintln!("agent: {error}");
        return ExitCode::from(error.exit_code());
    }
    eprintln!("agent: expected a command");
    ExitCode::from(64)
}
