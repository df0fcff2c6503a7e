//! A real agent over a trainer that only prints, looked at and stopped from outside: by HTTP, by
//! its stream, by its metrics, and by the agent's own commands, against its address and its store.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use agent::https;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

const TOKEN: &str = "control-token-0123456789";
const READ: &str = "reading-token-0123456789";
const PATIENCE: Duration = Duration::from_secs(60);

/// What a PyTorch nanoGPT prints, and what it posts if it is told where. It ends when asked to.
const TRAINER: &str = r#"
trap 'echo saved; exit 75' TERM
echo "Overriding: max_iters = 100"
echo "tokens per iteration will be: 1,000"
echo "step 0: train loss 4.2000, val loss 4.3000"
n=0
while [ $n -lt 60 ]; do
    echo "iter $n: loss 2.5000, time 20.00ms, mfu 1.50%"
    n=$((n + 1))
    sleep 0.02
done
echo "step 60: train loss 2.4000, val loss 2.6000"
echo "url $KUBEFLOW_TRAINER_SERVER_URL token ${AGENT_TOKEN-none}"
while :; do sleep 0.05; done
"#;

struct Agent {
    child: Child,
    dir: tempfile::TempDir,
    url: String,
    client: Client,
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent"));
    command.env_remove("AGENT_URL").env("NO_PROXY", "*");
    command
}

impl Agent {
    fn start(trainer: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let said = std::fs::File::create(dir.path().join("said")).unwrap();
        let child = program()
            .args([
                "run",
                "--store=store",
                "--job=j",
                "--run-dir=run",
                "--ttl=4s",
            ])
            .args([
                "--listen=127.0.0.1:0",
                "--",
                "sh",
                "-c",
                trainer,
                "{run_dir}",
            ])
            .env("AGENT_TOKEN", TOKEN)
            .env("AGENT_READ_TOKEN", READ)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .spawn()
            .unwrap();
        let client = https::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .build()
            .unwrap();
        let mut agent = Self {
            child,
            dir,
            url: String::new(),
            client,
        };
        agent.url = agent.waits("its address", |agent| {
            let said = agent.said();
            let (_, rest) = said.split_once("served at ")?;
            Some(rest.split_once(',')?.0.to_owned())
        });
        agent
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("said")).unwrap()
    }

    fn waits<T>(&self, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(begin.elapsed() < PATIENCE, "{what}\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.client
            .get(format!("{}{path}", self.url))
            .bearer_auth(READ)
    }

    /// Asks for the status, by long polls, until something is so.
    async fn status_until(&self, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        let begin = Instant::now();
        let mut rev = 0;
        loop {
            let path = format!("/api/v1/jobs/j?wait=2&rev={rev}");
            let status: Value = self.get(&path).send().await.unwrap().json().await.unwrap();
            if so(&status) {
                return status;
            }
            assert!(
                begin.elapsed() < PATIENCE,
                "{what}: {status:#}\n{}",
                self.said()
            );
            rev = status["rev"].as_u64().unwrap();
        }
    }

    /// Runs a command of the agent's against its address.
    fn command(&self, words: &[&str]) -> String {
        let mut command = program();
        command
            .args(words)
            .arg("--url")
            .arg(&self.url)
            .env("AGENT_TOKEN", TOKEN);
        text(&command.output().unwrap())
    }
}

/// Runs a command of the agent's against the store.
fn stored(dir: &Path, words: &[&str]) -> String {
    let mut command = program();
    command
        .args(words)
        .args(["--store=store", "--job=j"])
        .current_dir(dir);
    text(&command.output().unwrap())
}

#[track_caller]
fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[tokio::test]
async fn a_trainer_that_only_prints_has_a_full_status_and_stops_when_told() {
    let mut agent = Agent::start(TRAINER);
    let status = agent
        .status_until("the last evaluation", |status| {
            status["progress"]["val_loss"] == 2.6
        })
        .await;
    let progress = &status["progress"];
    assert_eq!(
        (&status["status"], &status["phase"]),
        (&json!("running"), &json!("training"))
    );
    assert_eq!(
        (&progress["step"], &progress["total_steps"]),
        (&json!(60), &json!(100))
    );
    assert_eq!(
        (&progress["loss"], &progress["mfu"]),
        (&json!(2.5), &json!(0.015))
    );
    assert_eq!(progress["percent"], 60.0);
    assert_eq!(progress["tokens"], 60_000);
    assert_eq!(progress["tokens_per_second"], 50_000.0);
    assert!(progress["eta_seconds"].is_u64(), "{progress}");
    assert_eq!(
        (&status["provider"], &status["cost_so_far"]),
        (&json!("local"), &json!(0.0))
    );

    look_closer(&agent).await;
    let stream = agent
        .get("/api/v1/jobs/j/logs/stream?since=0")
        .send()
        .await
        .unwrap();
    assert!(
        agent
            .command(&["stop", "--json"])
            .contains("\"accepted\":true")
    );
    assert_eq!(
        agent.child.wait().unwrap().code(),
        Some(12),
        "{}",
        agent.said()
    );
    let told = rest_of(stream).await;
    for part in [
        "id: 1.3\n",
        "\"line\":\"saved\"",
        "event: end\n",
        "\"reason\":\"cancelled\"",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }

    let dir = agent.dir.path();
    let last: Value = serde_json::from_str(&stored(dir, &["status", "--json"])).unwrap();
    assert_eq!(
        (&last["phase"], &last["resumable"]),
        (&json!("cancelled"), &json!(true))
    );
    assert_eq!(last["progress"]["step"], 60);
    let lines = stored(dir, &["logs", "--follow"]);
    assert!(
        lines.contains("iter 59: loss") && lines.contains("saved\n"),
        "{lines}"
    );
    assert!(!agent.said().contains(TOKEN));
}

/// A stream to its end.
async fn rest_of(mut stream: reqwest::Response) -> String {
    let mut told = String::new();
    while let Some(chunk) = stream.chunk().await.unwrap() {
        told.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    told
}

/// Everything else that shows the job while it runs.
async fn look_closer(agent: &Agent) {
    // The trainer knows where to report, and no token of the agent's.
    agent.waits("the trainer's last line", |agent| {
        agent.said().contains("url http://127.0.0.1:").then_some(())
    });
    assert!(agent.said().contains("token none"), "{}", agent.said());

    let page = agent
        .get("/metrics")
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    for line in [
        "anneal_train_step 60.0",
        "anneal_train_step_duration_seconds_count 60.0",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} in {page}");
    }
    let path = "/api/v1/jobs/j/metrics?name=loss,val_loss&max_points=10";
    let series: Value = agent.get(path).send().await.unwrap().json().await.unwrap();
    assert_eq!(
        series["series"][0]["points"].as_array().unwrap().len(),
        10,
        "{series}"
    );
    assert_eq!(series["series"][1]["points"][1]["last"], 2.6, "{series}");
    let save = agent
        .client
        .post(format!("{}/api/v1/jobs/j/checkpoint", agent.url));
    assert_eq!(save.bearer_auth(TOKEN).send().await.unwrap().status(), 409);
    let open = agent
        .client
        .get(format!("{}/api/v1/jobs/j", agent.url))
        .send()
        .await
        .unwrap();
    assert_eq!(open.status(), 401);

    let table = agent.command(&["status"]);
    assert!(table.contains("step       60 of 100 (60.0 %)"), "{table}");
    let tail = agent.command(&["logs", "--tail=1"]);
    assert!(tail.starts_with("url http://"), "{tail}");
    let all = agent.command(&["logs"]);
    assert!(
        all.contains("iter 0: loss") && all.contains("iter 59: loss"),
        "{all}"
    );
    assert!(agent.command(&["artifacts"]).contains("logs/a0001.log"));
}

#[test]
fn a_stop_that_is_left_in_the_store_is_heard() {
    let mut agent = Agent::start("trap 'exit 75' TERM; while :; do sleep 0.05; done");
    agent.waits("the lease", |agent| {
        agent
            .dir
            .path()
            .join("store/j/lease")
            .exists()
            .then_some(())
    });
    stored(agent.dir.path(), &["stop"]);
    assert_eq!(
        agent.child.wait().unwrap().code(),
        Some(12),
        "{}",
        agent.said()
    );
}

#[test]
fn an_agent_is_not_served_to_others_without_a_token() {
    let output = program()
        .args(["run", "--listen=0.0.0.0:0", "--", "true"])
        .env_remove("AGENT_TOKEN")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("--listen 0.0.0.0:0: expected a token"),
        "{said}"
    );
}
