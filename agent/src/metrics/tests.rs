//! What the metrics page says, in both formats, by names and values.

use std::time::Duration;

use super::*;
use crate::status::{JobCheckpoint, JobCost, JobGpu, JobProgress, JobTimes};

fn shown() -> Shown {
    let mut counters = Counters::default();
    counters.steps = 3;
    counters.step_seconds.observe(0.0006);
    counters.step_seconds.observe(0.02);
    counters.step_seconds.observe(9999.0);
    counters.renewals.insert("held", 7);
    counters
        .notices
        .insert("a \"quoted\"\\\nsource".to_owned(), 1);
    Shown {
        status: JobStatus {
            id: "j".to_owned(),
            provider: "vast".to_owned(),
            status: "running".to_owned(),
            progress: JobProgress {
                step: Some(5200),
                loss: Some(2.5),
                percent: Some(26.0),
                steps_per_second: Some(4.0),
                ..JobProgress::default()
            },
            checkpoint: JobCheckpoint {
                steps_at_risk: Some(200),
                ..JobCheckpoint::default()
            },
            cost_so_far: 0.25,
            cost: Some(JobCost {
                price_per_hour: 0.36,
                ..JobCost::default()
            }),
            timestamps: JobTimes {
                started: "1970-01-01T00:01:00Z".to_owned(),
                ..JobTimes::default()
            },
            gpu: vec![JobGpu::default()],
            ..JobStatus::default()
        },
        counters,
        ..Shown::default()
    }
}

fn page(format: Format) -> String {
    let shown = shown();
    let requests = BTreeMap::from([(("/livez".to_owned(), "GET".to_owned(), 200), 5)]);
    let sources = Sources {
        shown: &shown,
        logs: Counts::default(),
        gpus: &Gpus::default(),
        requests: &requests,
        store: &store::Asked {
            outcomes: BTreeMap::from([(("create", "ok"), 4)]),
            seconds: BTreeMap::from([("create", shown.counters.step_seconds.clone())]),
        },
        dcgm_names: true,
        disk_free_bytes: Some(1 << 30),
        memory_bytes: None,
        oom_kills: Some(2),
    };
    render(&sources, format)
}

#[test]
fn values_are_in_base_units_under_the_names_that_are_specified() {
    let page = page(Format::Classic);
    for line in [
        "anneal_job_info{job_id=\"j\",provider=\"vast\",gpu=\"\",region=\"\",instance_id=\"\"} 1.0",
        "anneal_job_state{state=\"running\"} 1.0",
        "anneal_job_state{state=\"failed\"} 0.0",
        "anneal_job_start_time_seconds 60.0",
        "anneal_train_steps_total 3.0",
        "anneal_train_step 5200.0",
        "anneal_train_loss 2.5",
        "anneal_train_progress_ratio 0.26",
        "anneal_train_step_duration_seconds_bucket{le=\"0.001\"} 1.0",
        "anneal_train_step_duration_seconds_bucket{le=\"0.025\"} 2.0",
        "anneal_train_step_duration_seconds_bucket{le=\"1800.0\"} 2.0",
        "anneal_train_step_duration_seconds_bucket{le=\"+Inf\"} 3.0",
        "anneal_train_step_duration_seconds_count 3.0",
        "anneal_checkpoint_duration_seconds_bucket{phase=\"upload\",le=\"0.5\"} 0.0",
        "anneal_work_at_risk_dollars 0.005",
        "anneal_cost_dollars_total 0.25",
        "anneal_store_requests_total{operation=\"create\",outcome=\"ok\"} 4.0",
        "anneal_store_request_seconds_count{operation=\"create\"} 3.0",
        "anneal_lease_renewals_total{result=\"held\"} 7.0",
        "anneal_preemption_notices_total{source=\"a \\\"quoted\\\"\\\\\\nsource\"} 1.0",
        "anneal_http_requests_total{route=\"/livez\",method=\"GET\",code=\"200\"} 5.0",
        "anneal_cgroup_oom_kills_total 2.0",
        "anneal_disk_free_bytes{mount=\"run_dir\"} 1073741824.0",
        "anneal_gpu_sampler_up 0.0",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
    // What is not known is not there.
    assert!(
        !page.contains("val_loss") && !page.contains("NaN"),
        "{page}"
    );
}

#[test]
fn every_family_is_declared_once_and_before_its_samples() {
    for format in [Format::Classic, Format::OpenMetrics] {
        let page = page(format);
        let mut declared: Vec<&str> = Vec::new();
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let name = rest.split(' ').next().unwrap();
                assert!(!declared.contains(&name), "{name}");
                declared.push(name);
            } else if !line.starts_with('#') {
                let name = declared.last().unwrap();
                assert!(line.starts_with(name), "{line} below {name}");
            }
        }
        assert!(declared.len() >= 30, "{declared:?}");
    }
}

#[test]
fn open_metrics_names_counters_and_infos_its_own_way_and_ends() {
    let page = page(Format::OpenMetrics);
    assert!(page.contains("# TYPE anneal_train_steps counter\nanneal_train_steps_total 3.0\n"));
    assert!(page.contains("# TYPE anneal_build info\nanneal_build_info{"));
    assert!(page.ends_with("# EOF\n"));
    let accept = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.1";
    assert_eq!(Format::wanted(accept), Format::OpenMetrics);
    assert_eq!(Format::wanted("text/plain, */*"), Format::Classic);
}

#[test]
fn gpus_have_the_names_of_nvidias_exporter_where_they_are_wanted() {
    let seen = gpu::Sample::Seen {
        gpus: vec![JobGpu {
            index: 1,
            uuid: "GPU-1".to_owned(),
            name: "H100".to_owned(),
            util_ratio: Some(0.5),
            mem_used_bytes: Some(3 << 20),
            mem_total_bytes: Some(4 << 20),
            energy_joules: Some(2.0),
            ..JobGpu::default()
        }],
        xids: Some(BTreeMap::from([((1, 79), 2)])),
    };
    let write = |format| {
        let mut page = Page::new(format);
        gpus(&mut page, &seen);
        dcgm(&mut page, &seen);
        page.end()
    };
    let labels = "{gpu=\"1\",UUID=\"GPU-1\",device=\"nvidia1\",modelName=\"H100\"}";
    let text = write(Format::Classic);
    for line in [
        "anneal_gpu_xid_watched 1.0".to_owned(),
        "anneal_gpu_xid_errors_total{gpu=\"1\",uuid=\"GPU-1\",xid=\"79\"} 2.0".to_owned(),
        format!("DCGM_FI_DEV_GPU_UTIL{labels} 50.0"),
        format!("DCGM_FI_DEV_FB_USED{labels} 3.0"),
        format!("DCGM_FI_DEV_FB_FREE{labels} 1.0"),
        "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter".to_owned(),
        format!("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{labels} 2000.0"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(!text.contains("GPU_TEMP"), "what is not known is not there");
    let open = write(Format::OpenMetrics);
    assert!(open.contains("# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION unknown"));
}

#[test]
fn a_machine_without_a_gpu_is_in_order_and_an_answer_never_waits() {
    let gpus = Gpus::watch();
    let begin = std::time::Instant::now();
    while gpus.state() == gpu::Sample::Unknown {
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "no look was taken"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(gpus.trouble(), None);
}
