//! Providers against fakes of their services on loopback.

mod detection;
mod fake;
mod giving_back;
mod looks;
mod notices;
mod requests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use super::call::Caller;
use super::host::Host;
use super::pace::Pace;
use super::{Adapter, Environment, Instance, Kind, Services};

/// Keys as the providers give them, and every service at a path of its own below `url`.
fn variables(url: &str) -> BTreeMap<String, String> {
    let mut variables: BTreeMap<String, String> = [
        ("CONTAINER_API_KEY", "vast-key-1234"),
        ("RUNPOD_API_KEY", "runpod-key-1234"),
        ("LAMBDA_API_KEY", "lambda-key-1234"),
        ("JL_API_KEY", "jarvis-key-1234"),
        ("PAPERSPACE_API_KEY", "paperspace-key-1234"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    for service in [
        "AWS_METADATA",
        "GCP_METADATA",
        "AZURE_METADATA",
        "AWS_EC2",
        "GCP_COMPUTE",
        "AZURE_MANAGEMENT",
        "VAST",
        "RUNPOD_V2",
        "RUNPOD_V1",
        "RUNPOD_GRAPHQL",
        "LAMBDA",
        "JARVISLABS",
        "PAPERSPACE",
        "PAPERSPACE_CORE",
    ] {
        let path = service.to_lowercase();
        variables.insert(format!("AGENT_{service}_URL"), format!("{url}/{path}"));
    }
    let address = url.strip_prefix("http://").unwrap();
    variables.insert("TBE_RUNTIME_ADDR".to_owned(), address.to_owned());
    variables
}

fn environment_of(variables: BTreeMap<String, String>) -> Environment {
    Arc::new(move |name| variables.get(name).cloned())
}

fn instance(kind: Kind, id: &str) -> Instance {
    Instance {
        kind,
        found_by: "test".to_owned(),
        id: Some(id.to_owned()).filter(|id| !id.is_empty()),
        region: Some("us-west-2".to_owned()),
        machine: None,
        spot: None,
        ends_in: None,
    }
}

/// An adapter whose services are all at `url`, that hurries and leaves this machine alone.
fn adapter(instance: Instance, url: &str) -> (Adapter, Arc<FakeHost>) {
    adapter_with(instance, url, &[])
}

fn adapter_with(instance: Instance, url: &str, more: &[(&str, &str)]) -> (Adapter, Arc<FakeHost>) {
    let mut variables = variables(url);
    for (name, value) in more {
        variables.insert((*name).to_owned(), (*value).to_owned());
    }
    let environment = environment_of(variables);
    let services = Services::new(&environment);
    let mut adapter = Adapter::new(instance, services.clone(), environment);
    let host = Arc::new(FakeHost::default());
    adapter.host = host.clone();
    adapter.caller = Caller::new(services, Duration::from_millis(500));
    adapter.pace = Pace {
        first: Duration::from_millis(10),
        max: Duration::from_millis(20),
        look_every: Duration::from_millis(5),
        settle: Duration::from_millis(40),
        patience: Duration::from_secs(3600),
        price: Duration::from_millis(300),
        zombie: Duration::from_secs(3600),
    };
    (adapter, host)
}

/// A machine that notes what would have been done to it.
#[derive(Default)]
struct FakeHost {
    first: bool,
    done: Mutex<Vec<&'static str>>,
}

impl FakeHost {
    fn done(&self) -> Vec<&'static str> {
        self.done.lock().unwrap().clone()
    }
}

#[async_trait]
impl Host for FakeHost {
    fn is_first(&self) -> bool {
        self.first
    }

    async fn end_container(&self) -> Result<(), String> {
        self.done.lock().unwrap().push("end container");
        Err("kill 1: it lives on".to_owned())
    }

    async fn shut_down(&self) -> Result<(), String> {
        self.done.lock().unwrap().push("shut down");
        Err("shutdown: not found".to_owned())
    }
}
