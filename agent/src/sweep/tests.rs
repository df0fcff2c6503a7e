//! Tests of sweeps, by what they are of.

mod spaces;
mod ledger;
mod rungs;
mod trials;
