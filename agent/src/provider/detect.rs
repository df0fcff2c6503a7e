//! Finds out whose machine this is: told, by variables that only one provider sets, or by a
//! metadata service that answers as only one provider's does. Called once at the start.

use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;

use super::call::Caller;
use super::http::plain_client;
use super::kind::speaker;
use super::metadata::{self, Imds};
use super::{Environment, Instance, Kind, Services, modal, slurm};

/// All metadata services together.
const PROBES_MAX: Duration = Duration::from_secs(2);
/// What a provider's API is given to tell more; nothing depends on it.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// Whose machine this is. `told` decides if there; nothing is concluded from the absence of others,
/// so an unknown machine is [`Kind::Local`] and is never switched off.
pub async fn detect(
    environment: &Environment,
    told: Option<Kind>,
    services: &Services,
) -> Instance {
    let named = match told {
        Some(kind) => Some((kind, "--provider")),
        None => by_variables(environment),
    };
    let Some((kind, found_by)) = named else {
        return by_metadata(services).await;
    };
    let mut instance = Instance::new(kind, found_by);
    let (id, region) = match kind {
        Kind::Vast => ("CONTAINER_ID", ""),
        Kind::RunPod => ("RUNPOD_POD_ID", "RUNPOD_DC_ID"),
        Kind::Modal => ("MODAL_TASK_ID", "MODAL_REGION"),
        Kind::Slurm => ("SLURM_JOB_ID", "SLURM_CLUSTER_NAME"),
        // A pod's host name is its name.
        Kind::Kubernetes => ("HOSTNAME", ""),
        _ => ("", ""),
    };
    let set = |name: &str| environment(name).filter(|value| !value.is_empty());
    instance.id = set(id).or_else(|| set("AGENT_INSTANCE_ID"));
    instance.region = set(region);
    match kind {
        Kind::Modal => instance.ends_in = Some(modal::LONGEST),
        Kind::Slurm => instance.ends_in = slurm::ends_in(environment),
        Kind::Aws | Kind::Gcp | Kind::Azure => {
            let facts = async {
                match kind {
                    Kind::Aws => aws(services).await,
                    Kind::Gcp => gcp(services).await,
                    _ => azure(services).await,
                }
            };
            if let Ok(Some(facts)) = timeout(PROBES_MAX, facts).await {
                // An id that was told is of another machine; its region may differ, too.
                if instance.id.is_none() || instance.id == facts.id {
                    instance = Instance {
                        found_by: instance.found_by,
                        ..facts
                    };
                }
            }
            let region = || set("AWS_REGION").or_else(|| set("AWS_DEFAULT_REGION"));
            if kind == Kind::Aws && instance.region.is_none() {
                instance.region = region();
            }
        }
        _ => look(&mut instance, services, environment).await,
    }
    instance
}

impl Instance {
    fn new(kind: Kind, found_by: &str) -> Self {
        Self {
            kind,
            found_by: found_by.to_owned(),
            id: None,
            region: None,
            machine: None,
            spot: None,
            ends_in: None,
        }
    }
}

/// The first that matches, in order: a container of Vast's may run on a machine of Google's.
fn by_variables(environment: &Environment) -> Option<(Kind, &'static str)> {
    let set = |name: &str| environment(name).is_some_and(|value| !value.is_empty());
    let all = [
        (
            set("CONTAINER_ID") && set("VAST_CONTAINERLABEL"),
            Kind::Vast,
            "CONTAINER_ID and VAST_CONTAINERLABEL",
        ),
        (set("RUNPOD_POD_ID"), Kind::RunPod, "RUNPOD_POD_ID"),
        (set("MODAL_TASK_ID"), Kind::Modal, "MODAL_TASK_ID"),
        (set("TBE_RUNTIME_ADDR"), Kind::Colab, "TBE_RUNTIME_ADDR"),
        (set("COLAB_RELEASE_TAG"), Kind::Colab, "COLAB_RELEASE_TAG"),
        (set("SLURM_JOB_ID"), Kind::Slurm, "SLURM_JOB_ID"),
        (
            set("KUBERNETES_SERVICE_HOST"),
            Kind::Kubernetes,
            "KUBERNETES_SERVICE_HOST",
        ),
    ];
    let found = all.into_iter().find(|(is_set, ..)| *is_set);
    found.map(|(_, kind, name)| (kind, name))
}

/// Asks all three at once. Two that answer are one that pretends.
async fn by_metadata(services: &Services) -> Instance {
    let (aws, gcp, azure) = tokio::join!(
        timeout(PROBES_MAX, aws(services)),
        timeout(PROBES_MAX, gcp(services)),
        timeout(PROBES_MAX, azure(services)),
    );
    let mut found: Vec<Instance> = [aws, gcp, azure]
        .into_iter()
        .filter_map(|facts| facts.ok().flatten())
        .collect();
    match (found.pop(), found.is_empty()) {
        (Some(instance), true) => instance,
        (Some(_), false) => Instance::new(Kind::Local, "several metadata services answered"),
        (None, _) => Instance::new(Kind::Local, "no variable and no metadata service"),
    }
}

async fn aws(services: &Services) -> Option<Instance> {
    let imds = Imds::new(services.aws_metadata.clone());
    let id = imds.text("instance-id").await?;
    if !id.starts_with("i-") {
        return None;
    }
    let (life, machine, region) = tokio::join!(
        imds.text("instance-life-cycle"),
        imds.text("instance-type"),
        imds.text("placement/region"),
    );
    Some(Instance {
        id: Some(id),
        region,
        machine,
        spot: life.map(|life| life == "spot"),
        ..Instance::new(Kind::Aws, "EC2's metadata service")
    })
}

async fn gcp(services: &Services) -> Option<Instance> {
    let client = plain_client(metadata::ANSWER_MAX);
    let project = metadata::gcp(&client, services, "project/project-id").await;
    let project = project.ok()?.body.trim().to_owned();
    let machine = metadata::gcp(&client, services, "instance/?recursive=true").await;
    let machine = machine.ok()?.json();
    let last = |name: &str| {
        let path = machine[name].as_str()?;
        path.rsplit('/').next().map(str::to_owned)
    };
    let (name, zone) = (machine["name"].as_str()?, last("zone")?);
    let preemptible = machine["scheduling"]["preemptible"].as_str();
    Some(Instance {
        id: Some(format!("projects/{project}/zones/{zone}/instances/{name}")),
        region: Some(zone),
        machine: last("machineType"),
        spot: preemptible.map(|preemptible| preemptible.eq_ignore_ascii_case("true")),
        ..Instance::new(Kind::Gcp, "Google's metadata service")
    })
}

async fn azure(services: &Services) -> Option<Instance> {
    let client = plain_client(metadata::ANSWER_MAX);
    let path = "instance?api-version=2021-02-01";
    let answer = metadata::azure(&client, services, path).await.ok()?;
    let answer = answer.json();
    let compute = &answer["compute"];
    let text = |name: &str| compute[name].as_str().map(str::to_owned);
    compute["vmId"].as_str()?;
    Some(Instance {
        id: text("resourceId"),
        region: text("location"),
        machine: text("vmSize"),
        spot: match &compute["priority"] {
            Value::String(priority) => Some(priority.eq_ignore_ascii_case("spot")),
            _ => None,
        },
        ..Instance::new(Kind::Azure, "Azure's metadata service")
    })
}

/// Adds what the provider's API tells, if it answers soon.
async fn look(instance: &mut Instance, services: &Services, environment: &Environment) {
    let speaker = speaker(instance, services, environment);
    let Some(request) = speaker.look() else {
        return;
    };
    let caller = Caller::new(services.clone(), LOOK_MAX);
    if let Ok(Ok(answer)) = timeout(LOOK_MAX, caller.send(&request)).await {
        speaker.read(&answer).complete(instance);
    }
}
