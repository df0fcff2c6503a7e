//! The dead-man's switch: a second process of the same program that ends the machine when the agent
//! hangs, dies or outlives its deadline. Started by the command line before anything else.
//!
//! The agent writes a line to a pipe every second. The switch reads nothing else, writes nothing,
//! knows neither store nor trainer, and so has nothing to wait for. In a container whose first
//! process would be the agent, the switch is the first process and the agent its child: a container
//! dies with its first process, and with it whoever else is there.

mod orders;
mod pulse;
mod watch;
#[cfg(test)]
mod tests;

pub use orders::Orders;
pub use pulse::{Pulse, UNDER_GUARD};
pub use watch::{COMMAND, be_first, run};
