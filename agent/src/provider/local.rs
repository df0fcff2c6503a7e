//! A machine of which nothing is known. Nobody rents it out, so nothing is ever switched off.

use std::path::Path;
use std::time::Duration;

use super::PowerOff;
use super::api::{GRACE, GRACE_OF_CONTAINERS, Provider, Way};

pub(super) struct Local;

impl Provider for Local {
    fn way(&self, _how: PowerOff) -> Way {
        let why = "no provider was found or told, so nothing is switched off";
        Way::None(why.to_owned())
    }

    fn default_grace(&self) -> Duration {
        if Path::new("/.dockerenv").exists() {
            GRACE_OF_CONTAINERS
        } else {
            GRACE
        }
    }
}
