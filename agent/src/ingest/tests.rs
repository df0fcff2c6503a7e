//! What trainers print and post, as they do, and anything else.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::https;

fn seen(line: &str) -> Report {
    Report {
        time: String::new(),
        ..lines::parse(line).unwrap_or_else(|| panic!("{line}"))
    }
}

#[test]
fn lines_of_nanogpt_are_read() {
    let none = Report::default();
    for (line, report) in [
        (
            "iter 5200: loss 2.9130, time 243.20ms, mfu 38.10%",
            Report {
                step: Some(5201),
                loss: Some(2.913),
                step_time: Some(Duration::from_micros(243_200)),
                mfu: Some(0.381),
                ..none.clone()
            },
        ),
        (
            "iter 0: loss 4.2, time 10.00ms, mfu -100.00%",
            Report {
                step: Some(1),
                loss: Some(4.2),
                step_time: Some(Duration::from_millis(10)),
                ..none.clone()
            },
        ),
        (
            "step 5000: train loss 2.9000, val loss 3.0100",
            Report {
                step: Some(5000),
                train_loss: Some(2.9),
                val_loss: Some(3.01),
                ..none.clone()
            },
        ),
        (
            "Overriding: max_iters = 2000",
            Report {
                total_steps: Some(2000),
                ..none.clone()
            },
        ),
        (
            "tokens per iteration will be: 16,384",
            Report {
                tokens_per_step: Some(16_384),
                ..none.clone()
            },
        ),
    ] {
        assert_eq!(seen(line), report, "{line}");
    }
    assert!(seen("iter 3: loss nan, time 1.00ms").loss.unwrap().is_nan());
}

#[test]
fn lines_of_other_trainers_are_read() {
    let none = Report::default();
    for (line, report) in [
        (
            "{'loss': 2.9, 'grad_norm': '1.5', 'learning_rate': 5e-05, 'epoch': 1.2}",
            Report {
                loss: Some(2.9),
                grad_norm: Some(1.5),
                lr: Some(5e-5),
                epoch: Some(1.2),
                ..none.clone()
            },
        ),
        (
            " 26%|██▌       | 26/100 [00:01<00:03, 20.0it/s]",
            Report {
                step: Some(26),
                total_steps: Some(100),
                ..none.clone()
            },
        ),
        (
            "Epoch 1:  25%|██▌       | 25/100 [00:01<00:03, 20.0it/s, loss=2.9, v_num=0]",
            Report {
                epoch: Some(1.25),
                loss: Some(2.9),
                ..none.clone()
            },
        ),
        (
            "INFO Epoch 2/10 - lr 0.1 - loss: 0.4321 - acc: 0.9",
            Report {
                epoch: Some(2.0),
                total_epochs: Some(10.0),
                loss: Some(0.4321),
                ..none.clone()
            },
        ),
    ] {
        assert_eq!(seen(line), report, "{line}");
    }
    for other in [
        "number of parameters: 10.65M",
        "Map: 10%|█ | 10/100 [00:01<00:10]",
        "val_loss: 3.0",
        "saving checkpoint to out",
        "{'not': 'ours'}",
        "",
    ] {
        assert_eq!(lines::parse(other), None, "{other}");
    }
}

#[test]
fn what_hugging_faces_trainer_posts_is_read() {
    let text = json!({"trainerStatus": {
        "lastUpdatedTime": "2026-01-02T03:04:05.123456+00:00",
        "progressPercentage": 45,
        "estimatedRemainingSeconds": 795,
        "metrics": [
            {"name": "loss", "value": "0.2347"},
            {"name": "eval_loss", "value": "0.3"},
            {"name": "current_step", "value": "450"},
            {"name": "total_steps", "value": "1000"},
            {"name": "current_epoch", "value": "1.35"},
            {"name": "nonsense", "value": {}},
        ],
    }});
    let report = body::kubeflow(text.to_string().as_bytes()).unwrap();
    assert_eq!(report.time, "2026-01-02T03:04:05.123Z");
    assert_eq!((report.step, report.total_steps), (Some(450), Some(1000)));
    assert_eq!((report.loss, report.val_loss), (Some(0.2347), Some(0.3)));
    assert_eq!((report.percent, report.epoch), (Some(45.0), Some(1.35)));
    assert_eq!(report.eta, Some(Duration::from_secs(795)));
    assert!(body::kubeflow(b"{}").is_err());
    let two = body::lines(b"{\"step\":1,\"loss\":2.5}\n\n{\"step\":2,\"loss\":\"NaN\"}\n").unwrap();
    assert_eq!((two.len(), two[0].loss), (2, Some(2.5)));
    assert!(two[1].loss.unwrap().is_nan());
    assert_eq!(
        body::lines(b"{}\n[1]\n").unwrap_err().split(':').next(),
        Some("line 2")
    );
}

#[tokio::test]
async fn only_who_has_the_token_reports() {
    let dir = tempfile::tempdir().unwrap();
    let mut learned = String::new();
    let mut ingest = Ingest::start(&RunDir::new(dir.path()), |token| {
        token.clone_into(&mut learned)
    })
    .unwrap();
    let environment = ingest.environment();
    let variable = |name: &str| {
        let found = environment.iter().find(|(known, _)| known == name);
        found.unwrap().1.to_str().unwrap().to_owned()
    };
    let token = fs::read_to_string(variable("KUBEFLOW_TRAINER_SERVER_TOKEN")).unwrap();
    assert_eq!(token, learned);
    let client = https::builder().no_proxy().build().unwrap();
    let post = |url: String, token: &str, body: &str| {
        client
            .post(url)
            .bearer_auth(token)
            .body(body.to_owned())
            .send()
    };
    let url = variable("KUBEFLOW_TRAINER_SERVER_URL");
    let body = "{\"trainerStatus\":{\"progressPercentage\":5}}";
    assert_eq!(
        post(url.clone(), "wrong", body).await.unwrap().status(),
        401
    );
    assert_eq!(post(url.clone(), &token, "x").await.unwrap().status(), 400);
    // The client of Hugging Face takes nothing but 200 for an answer.
    assert_eq!(post(url, &token, body).await.unwrap().status(), 200);
    let Some(Event::Reported(report)) = ingest.next().await else {
        panic!("no report");
    };
    assert_eq!(report.percent, Some(5.0));
    let lines = variable("AGENT_INGEST_URL");
    assert_eq!(
        post(lines, &token, "{\"step\":3}\n")
            .await
            .unwrap()
            .status(),
        200
    );
    assert!(matches!(ingest.next().await, Some(Event::Reported(it)) if it.step == Some(3)));
    // A directory is taken over before the answer comes; JSON is asked for by its name.
    let written = dir.path().join("checkpoint-7");
    fs::create_dir(&written).unwrap();
    fs::write(written.join("model.bin"), b"weights").unwrap();
    let body = json!({"dir": written, "step": 7});
    let ask = || {
        let request = client.post(variable("AGENT_INGEST_CHECKPOINT_URL"));
        request.bearer_auth(&token).json(&body).send()
    };
    assert_eq!(ask().await.unwrap().status(), 200);
    assert!(
        RunDir::new(dir.path())
            .checkpoint(7)
            .join("manifest.json")
            .exists()
    );
    assert_eq!(ask().await.unwrap().status(), 409);
    let path = ingest.token_path.clone();
    drop(ingest);
    assert!(!path.exists());
}

proptest! {
    #[test]
    fn any_line_is_read_or_passed_over(line in ".*") {
        lines::parse(&line);
    }

    #[test]
    fn any_line_that_looks_like_progress_is_read_or_passed_over(
        line in "(iter|step|Epoch|\\{'loss'|tokens per iteration will be|max_iters)[ :=']{0,3}\
                 [-0-9.,/%|naife ]{0,40}(ms|, mfu|val loss)?.{0,20}"
    ) {
        lines::parse(&line);
    }

    #[test]
    fn any_body_is_a_report_or_an_error(body: Vec<u8>) {
        body::kubeflow(&body).ok();
        body::lines(&body).ok();
    }

    #[test]
    fn any_numbers_are_taken_or_left_out(step: f64, loss: f64, eta: f64) {
        let values = serde_json::json!({
            "step": step.to_string(), "loss": loss.to_string(),
            "eta_seconds": eta.to_string(), "step_ms": eta.to_string(),
        });
        let text = values.to_string();
        let report = &body::lines(text.as_bytes()).unwrap()[0];
        let mut progress = crate::progress::Progress::default();
        let now = crate::clock::Moment::since_boot(Duration::from_secs(1));
        progress.report(report, now);
        progress.report(report, now + Duration::from_secs(1));
        prop_assert!(progress.loss.is_none_or(f64::is_finite));
        progress.eta();
        progress.percent();
    }
}
