//! The machine as the agent holds it: how it is given back, and whom to tell. Made by the command
//! line, used by the loop and by the dead-man's switch.

mod switch;
mod webhook;
#[cfg(test)]
mod tests;

pub use switch::Switch;
pub use webhook::Webhook;
pub(crate) use webhook::body;
