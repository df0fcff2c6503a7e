//! The status as types: what `status.json` and the HTTP API say, and what the OpenAPI document is
//! made of. Filled in by `status.rs`, read by the command line.
//!
//! Optional fields are left out, never null. Fields are only ever added.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::bill::{JobControl, JobCost, JobLimits};

/// A job as a poller sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobStatus {
    pub schema_version: u32,
    /// Grows with every change; for `wait` and `ETag`.
    pub rev: u64,
    pub id: String,
    /// Who rents the machine out; `local` if nobody is known to.
    pub provider: String,
    #[schema(schema_with = status_words)]
    pub status: String,
    /// What it is doing, in one word; each belongs to one `status`.
    pub phase: String,
    pub progress: JobProgress,
    /// The newest lines of output.
    #[serde(default)]
    pub logs: Vec<String>,
    /// Cursor of the newest of `logs`: `since` for the next page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logs_next: Option<u64>,
    /// Dollars of all its machines together; 0 while no price is known.
    #[serde(default)]
    pub cost_so_far: f64,
    /// Dollars that the whole job will have cost at the present pace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_total: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<JobCost>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<JobLimits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<JobControl>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<JobLease>,
    pub checkpoint: JobCheckpoint,
    pub attempt: u32,
    /// Times that the trainer was stopped through no fault of its own.
    pub preemptions: u32,
    /// Times that it was started again after a failure.
    pub restarts: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpu: Vec<JobGpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<JobInstance>,
    pub timestamps: JobTimes,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Whether whoever starts the job again goes on from its newest checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumable: Option<bool>,
    /// Whether another try can succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retryable: Option<bool>,
    /// The agent's exit status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<u8>,
}

/// The values of `status`.
pub const STATUSES: [&str; 5] = ["queued", "provisioning", "running", "completed", "failed"];

fn status_words() -> utoipa::openapi::schema::Object {
    utoipa::openapi::schema::ObjectBuilder::new()
        .schema_type(utoipa::openapi::schema::Type::String)
        .enum_values(Some(STATUSES))
        .build()
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobProgress {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_epochs: Option<f64>,
    /// Updates made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_steps: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Nats per token; left out while it is not a finite number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<u64>,
    /// Wall-clock time of the trainer's last word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
    /// There, and true, while the loss is not a finite number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub non_finite: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobLease {
    pub epoch: u64,
    pub holder: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_for_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_risk: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobCheckpoint {
    /// Of the newest one that is whole in the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
    /// Of the newest one on the machine's disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_step: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uploading_step: Option<u64>,
    /// What is lost if the machine vanishes now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps_at_risk: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobGpu {
    pub index: u32,
    pub uuid: String,
    pub name: String,
    /// 0 to 1, of the last second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub util_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_used_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_total_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_watts: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy_joules: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobInstance {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Where this API is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// SHA-256 of the certificate, lower-case hexadecimal, where the API speaks TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_fingerprint: Option<String>,
}

/// Wall-clock times, RFC 3339, UTC.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobTimes {
    pub started: String,
    pub updated: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
}

/// What the supervisor's state does not hold: filled in by those who know it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct More {
    pub provider: Option<String>,
    pub gpu: Vec<JobGpu>,
    pub instance: Option<JobInstance>,
}
