//! The real agent over the real trainer and a bucket, while everything goes wrong that can. In a
//! server in this process, or on the one that the environment names: see `bucket`.

mod group;
mod kills;
mod outages;
mod refusals;
mod restore;
mod rivals;
mod wire;
