//! The metrics page: everything that is shown as Prometheus wants it named and written. Called by
//! the HTTP server; reads what was collected before and asks nobody anything.

mod text;
pub mod gpu;
pub mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use self::gpu::Gpus;
pub use self::text::Format;
use self::text::{Kind, Page};
use crate::board::{Counters, Histogram, Shown};
use crate::logs::Counts;
use crate::status::{JobStatus, STATUSES};

/// Where the figures come from.
pub struct Sources<'a> {
    pub shown: &'a Shown,
    pub logs: Counts,
    pub gpus: &'a Gpus,
    /// By route, method and code.
    pub requests: &'a BTreeMap<(String, String, u16), u64>,
    pub store: &'a store::Asked,
    /// Whether GPUs are shown under the names of NVIDIA's exporter as well.
    pub dcgm_names: bool,
    pub disk_free_bytes: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub oom_kills: Option<u64>,
}

/// The page in a format.
pub fn render(sources: &Sources<'_>, format: Format) -> String {
    let mut page = Page::new(format);
    let (status, counters) = (&sources.shown.status, &sources.shown.counters);
    job(&mut page, status);
    training(&mut page, status, counters);
    checkpoints(&mut page, status, counters);
    money(&mut page, status);
    lease(&mut page, status, counters);
    agent(&mut page, sources);
    requests(&mut page, sources.store);
    let gpus = sources.gpus.state();
    self::gpus(&mut page, &gpus);
    if sources.dcgm_names {
        dcgm(&mut page, &gpus);
    }
    page.end()
}

fn job(page: &mut Page, status: &JobStatus) {
    let version = env!("CARGO_PKG_VERSION");
    let commit = option_env!("ANNEAL_COMMIT").unwrap_or("unknown");
    let build = [("version", version), ("commit", commit)];
    page.info("build", "The agent's build.", &build);
    let instance = status.instance.as_ref();
    let gpu = status.gpu.first().map(|gpu| gpu.name.as_str());
    let labels = [
        ("job_id", status.id.as_str()),
        ("provider", status.provider.as_str()),
        ("gpu", gpu.unwrap_or_default()),
        (
            "region",
            instance
                .and_then(|it| it.region.as_deref())
                .unwrap_or_default(),
        ),
        (
            "instance_id",
            instance.and_then(|it| it.id.as_deref()).unwrap_or_default(),
        ),
    ];
    page.info("job", "The job and where it runs.", &labels);
    let mut states = page.family(
        "job_state",
        Kind::Gauge,
        "1 for the job's state, 0 for others.",
    );
    for state in STATUSES {
        states.sample(
            &[("state", state)],
            f64::from(u8::from(state == status.status)),
        );
    }
    page.gauge(
        "attempts",
        "Trainer processes of this job.",
        Some(f64::from(status.attempt)),
    );
    let started = unix(&status.timestamps.started);
    page.gauge("job_start_time_seconds", "When this agent began.", started);
}

fn training(page: &mut Page, status: &JobStatus, counters: &Counters) {
    let it = &status.progress;
    let whole = |value: Option<u64>| value.map(|value| value as f64);
    page.counter(
        "train_steps",
        "Updates made under this agent.",
        counters.steps as f64,
    );
    page.counter(
        "train_tokens",
        "Tokens seen under this agent.",
        counters.tokens as f64,
    );
    page.gauge("train_step", "Updates made by the run.", whole(it.step));
    page.gauge(
        "train_steps_planned",
        "Updates that the run will make.",
        whole(it.total_steps),
    );
    page.gauge("train_loss", "Training loss, nats per token.", it.loss);
    page.gauge(
        "train_val_loss",
        "Validation loss, nats per token.",
        it.val_loss,
    );
    page.gauge("train_learning_rate", "Learning rate.", it.lr);
    page.gauge(
        "train_grad_norm",
        "Norm of the gradient before clipping.",
        it.grad_norm,
    );
    let help = "Tokens that the newest step trained on a second.";
    page.gauge("train_tokens_per_second", help, it.tokens_per_second);
    let help = "Time of a step without evaluation and checkpoint.";
    page.histogram(
        "train_step_duration_seconds",
        help,
        &[(&[], &counters.step_seconds)],
    );
    let ratio = it.percent.map(|percent| percent / 100.0);
    page.gauge("train_progress_ratio", "How far the run is, 0 to 1.", ratio);
    page.gauge(
        "train_eta_seconds",
        "Time to the end of the run.",
        whole(it.eta_seconds),
    );
    let help = "When the trainer last reported anything.";
    page.gauge(
        "train_last_progress_timestamp_seconds",
        help,
        counters.progress_at,
    );
    page.gauge("train_mfu_ratio", "Model FLOP utilisation, 0 to 1.", it.mfu);
}

fn checkpoints(page: &mut Page, status: &JobStatus, counters: &Counters) {
    let durations: [(&[(&str, &str)], &Histogram); 2] = [
        (&[("phase", "save")], &counters.save_seconds),
        (&[("phase", "upload")], &counters.upload_seconds),
    ];
    let help = "Time of a checkpoint on its way to the store.";
    page.histogram("checkpoint_duration_seconds", help, &durations);
    page.counters(
        "checkpoints",
        "Checkpoints of the trainer, by what became of them.",
        "outcome",
        &counters.checkpoints,
    );
    let help = "When a checkpoint was last published by this agent.";
    page.gauge(
        "checkpoint_last_published_timestamp_seconds",
        help,
        counters.published_at,
    );
    let whole = |value: Option<u64>| value.map(|value| value as f64);
    let help = "Step of the newest checkpoint in the store.";
    page.gauge(
        "checkpoint_last_published_step",
        help,
        whole(status.checkpoint.step),
    );
    let uploaded = counters.uploaded_bytes as f64;
    page.counter(
        "checkpoint_uploaded_bytes",
        "Bytes of published checkpoints.",
        uploaded,
    );
    let at_risk = whole(status.checkpoint.steps_at_risk);
    page.gauge(
        "work_at_risk_steps",
        "Updates that no checkpoint in the store has.",
        at_risk,
    );
    let dollars = status.cost.as_ref().and_then(|cost| {
        let seconds = at_risk?
            / status
                .progress
                .steps_per_second
                .filter(|rate| *rate > 0.0)?;
        Some(cost.price_per_hour * seconds / 3600.0)
    });
    page.gauge(
        "work_at_risk_dollars",
        "What it would cost to make them again.",
        dollars,
    );
}

fn money(page: &mut Page, status: &JobStatus) {
    if let Some(cost) = &status.cost {
        page.counter(
            "cost_dollars",
            "Money spent under this agent.",
            status.cost_so_far,
        );
        let price = Some(cost.price_per_hour);
        page.gauge("price_dollars_per_hour", "Price of the machine.", price);
        page.gauge("budget_dollars", "Money that may be spent.", cost.budget);
        page.gauge(
            "budget_remaining_dollars",
            "What is left of it.",
            cost.remaining,
        );
    }
    let deadlines = status.limits.iter().flat_map(|limits| &limits.deadlines);
    let deadlines: Vec<_> = deadlines
        .filter_map(|it| Some((&it.timer, unix(&it.at)?)))
        .collect();
    if !deadlines.is_empty() {
        let help = "When each timer ends the job.";
        let mut family = page.family("deadline_timestamp_seconds", Kind::Gauge, help);
        for (timer, at) in deadlines {
            family.sample(&[("timer", timer)], at);
        }
    }
}

fn lease(page: &mut Page, status: &JobStatus, counters: &Counters) {
    let lease = status.lease.as_ref();
    page.gauge(
        "lease_epoch",
        "Epoch of the lease.",
        lease.map(|lease| lease.epoch as f64),
    );
    let remaining = lease.and_then(|lease| lease.valid_for_seconds);
    let help = "How long the lease is surely ours.";
    page.gauge(
        "lease_remaining_seconds",
        help,
        remaining.map(|seconds| seconds as f64),
    );
    page.counters(
        "lease_renewals",
        "Beats by their result.",
        "result",
        &counters.renewals,
    );
    let help = "Leases taken after another holder's.";
    page.counter("lease_takeovers", help, counters.takeovers as f64);
    let help = "Notices that the machine is wanted back.";
    page.counters("preemption_notices", help, "source", &counters.notices);
    let help = "Ends of trainer processes, by how they came.";
    page.counters("trainer_exits", help, "reason", &counters.trainer_ends);
    let restarts = f64::from(status.restarts);
    page.counter(
        "restarts",
        "Failures that were followed by a restart.",
        restarts,
    );
}

fn agent(page: &mut Page, sources: &Sources<'_>) {
    let logs = sources.logs;
    let lines = [("agent", logs.agent_lines), ("stderr", logs.stderr_lines)];
    let lines: BTreeMap<_, _> = lines
        .into_iter()
        .chain([("stdout", logs.stdout_lines)])
        .collect();
    page.counters("log_lines", "Lines of output.", "source", &lines);
    let dropped = logs.dropped_bytes as f64;
    page.counter("log_dropped_bytes", "Output that was given up.", dropped);
    let mut requests = page.family("http_requests", Kind::Counter, "Answers to requests.");
    for ((route, method, code), count) in sources.requests {
        let code = code.to_string();
        let labels = [
            ("route", route.as_str()),
            ("method", method),
            ("code", &code),
        ];
        requests.sample(&labels, *count as f64);
    }
    let jumps = sources.shown.counters.clock_jumps as f64;
    page.counter("clock_jumps", "Jumps of the wall clock.", jumps);
    let whole = |value: Option<u64>| value.map(|value| value as f64);
    let help = "Memory of the container, page cache included.";
    page.gauge(
        "cgroup_memory_usage_bytes",
        help,
        whole(sources.memory_bytes),
    );
    if let Some(kills) = sources.oom_kills {
        let help = "Processes that the kernel killed for memory.";
        page.counter("cgroup_oom_kills", help, kills as f64);
    }
    if let Some(free) = sources.disk_free_bytes {
        let mut disk = page.family("disk_free_bytes", Kind::Gauge, "Free disk.");
        disk.sample(&[("mount", "run_dir")], free as f64);
    }
}

fn requests(page: &mut Page, store: &store::Asked) {
    let help = "Requests to the store, each try by itself.";
    let mut family = page.family("store_requests", Kind::Counter, help);
    for ((operation, outcome), count) in &store.outcomes {
        let labels = [("operation", *operation), ("outcome", *outcome)];
        family.sample(&labels, *count as f64);
    }
    let labels: Vec<_> = store
        .seconds
        .keys()
        .map(|it| [("operation", *it)])
        .collect();
    let seconds = labels.iter().map(|it| &it[..]).zip(store.seconds.values());
    let help = "Time of a request to the store.";
    page.histogram("store_request_seconds", help, &seconds.collect::<Vec<_>>());
}

fn gpus(page: &mut Page, state: &gpu::Sample) {
    let up = f64::from(u8::from(state.is_up()));
    page.gauge("gpu_sampler_up", "Whether the driver answers.", Some(up));
    let gpus = state.gpus();
    if state.is_up() {
        let help = "Whether the driver tells of XID errors.";
        let watched = f64::from(u8::from(state.xids().is_some()));
        page.gauge("gpu_xid_watched", help, Some(watched));
        let help = "Critical errors that the driver told of, by their number.";
        let mut family = page.family("gpu_xid_errors", Kind::Counter, help);
        for ((index, xid), count) in state.xids().into_iter().flatten() {
            let of = |gpu: &&crate::status::JobGpu| gpu.index == *index;
            let uuid = gpus.iter().find(of).map_or("", |gpu| gpu.uuid.as_str());
            let (index, xid) = (index.to_string(), xid.to_string());
            let labels = [("gpu", &*index), ("uuid", uuid), ("xid", &*xid)];
            family.sample(&labels, *count as f64);
        }
    }
    type Figure = fn(&crate::status::JobGpu) -> Option<f64>;
    let figures: [(&str, &str, Kind, Figure); 6] = [
        (
            "gpu_utilization_ratio",
            "Busy part of the last second.",
            Kind::Gauge,
            |it| it.util_ratio,
        ),
        ("gpu_memory_used_bytes", "Used memory.", Kind::Gauge, |it| {
            it.mem_used_bytes.map(|bytes| bytes as f64)
        }),
        ("gpu_memory_total_bytes", "All memory.", Kind::Gauge, |it| {
            it.mem_total_bytes.map(|bytes| bytes as f64)
        }),
        (
            "gpu_temperature_celsius",
            "Temperature.",
            Kind::Gauge,
            |it| it.temperature_celsius,
        ),
        ("gpu_power_watts", "Power drawn.", Kind::Gauge, |it| {
            it.power_watts
        }),
        (
            "gpu_energy_joules",
            "Energy used since the driver began.",
            Kind::Counter,
            |it| it.energy_joules,
        ),
    ];
    for (name, help, kind, figure) in figures {
        let there: Vec<_> = gpus
            .iter()
            .filter_map(|gpu| Some((gpu, figure(gpu)?)))
            .collect();
        if there.is_empty() {
            continue;
        }
        let mut family = page.family(name, kind, help);
        for (gpu, value) in there {
            let index = gpu.index.to_string();
            family.sample(&[("gpu", &index), ("uuid", &gpu.uuid)], value);
        }
    }
}

/// The same figures by the names, labels and units of NVIDIA's DCGM exporter, for dashboards that
/// know only these.
fn dcgm(page: &mut Page, state: &gpu::Sample) {
    const MIB: f64 = 1_048_576.0;
    type Figure = fn(&crate::status::JobGpu) -> Option<f64>;
    let figures: [(&str, &str, Kind, Figure); 6] = [
        (
            "DCGM_FI_DEV_GPU_UTIL",
            "GPU utilization, %.",
            Kind::Gauge,
            |it| it.util_ratio.map(|ratio| ratio * 100.0),
        ),
        (
            "DCGM_FI_DEV_FB_USED",
            "Memory used, MiB.",
            Kind::Gauge,
            |it| it.mem_used_bytes.map(|bytes| bytes as f64 / MIB),
        ),
        (
            "DCGM_FI_DEV_FB_FREE",
            "Memory free, MiB.",
            Kind::Gauge,
            |it| {
                let free = it.mem_total_bytes?.saturating_sub(it.mem_used_bytes?);
                Some(free as f64 / MIB)
            },
        ),
        (
            "DCGM_FI_DEV_GPU_TEMP",
            "Temperature, C.",
            Kind::Gauge,
            |it| it.temperature_celsius,
        ),
        (
            "DCGM_FI_DEV_POWER_USAGE",
            "Power draw, W.",
            Kind::Gauge,
            |it| it.power_watts,
        ),
        (
            "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
            "Energy since boot, mJ.",
            Kind::Counter,
            |it| it.energy_joules.map(|joules| joules * 1e3),
        ),
    ];
    for (name, help, kind, figure) in figures {
        let gpus = state.gpus().iter();
        let there: Vec<_> = gpus.filter_map(|gpu| Some((gpu, figure(gpu)?))).collect();
        if there.is_empty() {
            continue;
        }
        let mut family = page.foreign(name, kind, help);
        for (gpu, value) in there {
            let index = gpu.index.to_string();
            let device = format!("nvidia{index}");
            let labels = [
                ("gpu", &*index),
                ("UUID", &gpu.uuid),
                ("device", &device),
                ("modelName", &gpu.name),
            ];
            family.sample(&labels, value);
        }
    }
}

/// A time as seconds since 1970.
fn unix(time: &str) -> Option<f64> {
    let time: jiff::Timestamp = time.parse().ok()?;
    Some(time.as_millisecond() as f64 / 1e3)
}
