//! Where the providers' services are: their public addresses, or those that `AGENT_*_URL` variables
//! give instead (a proxy, a fake in a test).

use super::Environment;

/// Base addresses, without a slash at their end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Services {
    pub aws_metadata: String,
    pub gcp_metadata: String,
    pub azure_metadata: String,
    /// `None`: EC2 of the instance's own region.
    pub aws_ec2: Option<String>,
    pub gcp_compute: String,
    pub azure_management: String,
    pub vast: String,
    pub runpod_v2: String,
    pub runpod_v1: String,
    pub runpod_graphql: String,
    pub lambda: String,
    /// `None`: the backend of the machine's region.
    pub jarvislabs: Option<String>,
    pub paperspace: String,
    /// The older API, which knows notebooks.
    pub paperspace_core: String,
}

impl Services {
    /// The public addresses, but where the environment names others.
    pub fn new(environment: &Environment) -> Self {
        let told = |service: &str| {
            let url = environment(&format!("AGENT_{service}_URL"))?;
            Some(url.trim_end_matches('/').to_owned()).filter(|url| !url.is_empty())
        };
        let or = |service: &str, url: &str| told(service).unwrap_or_else(|| url.to_owned());
        Self {
            aws_metadata: or("AWS_METADATA", "http://169.254.169.254"),
            // The same address as `metadata.google.internal`, which needs a working resolver.
            gcp_metadata: or("GCP_METADATA", "http://169.254.169.254"),
            azure_metadata: or("AZURE_METADATA", "http://169.254.169.254"),
            aws_ec2: told("AWS_EC2"),
            gcp_compute: or("GCP_COMPUTE", "https://compute.googleapis.com/compute/v1"),
            azure_management: or("AZURE_MANAGEMENT", "https://management.azure.com"),
            vast: or("VAST", "https://console.vast.ai/api/v0"),
            runpod_v2: or("RUNPOD_V2", "https://api.runpod.io/v2"),
            runpod_v1: or("RUNPOD_V1", "https://rest.runpod.io/v1"),
            runpod_graphql: or("RUNPOD_GRAPHQL", "https://api.runpod.io/graphql"),
            lambda: or("LAMBDA", "https://cloud.lambdalabs.com/api/v1"),
            jarvislabs: told("JARVISLABS"),
            paperspace: or("PAPERSPACE", "https://api.paperspace.com/v1"),
            paperspace_core: or("PAPERSPACE_CORE", "https://api.paperspace.io"),
        }
    }
}
