//! x
mod tidy;
