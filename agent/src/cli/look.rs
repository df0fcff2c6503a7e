//! `agent status`, `logs` and `artifacts`: a job looked at from elsewhere.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;

use super::target::{Target, TargetArgs};
use crate::error::{Error, ExitStatus};
use crate::status::JobStatus;

/// Between two looks with `--follow`: at an agent, and at a store, where each look costs a listing.
const FOLLOW_AGENT: Duration = Duration::from_secs(1);
const FOLLOW_STORE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct Status {
    #[command(flatten)]
    target: TargetArgs,
    /// The whole status as JSON.
    #[arg(long)]
    json: bool,
    /// Go on until the job ends.
    #[arg(long)]
    follow: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Logs {
    #[command(flatten)]
    target: TargetArgs,
    /// Only so many of the newest lines.
    #[arg(long)]
    tail: Option<usize>,
    /// Each line as JSON.
    #[arg(long)]
    json: bool,
    /// Go on until the job ends.
    #[arg(long)]
    follow: bool,
}

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct ArtifactsArgs {
    #[command(subcommand)]
    command: Option<ArtifactsCommand>,
    #[command(flatten)]
    target: TargetArgs,
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum ArtifactsCommand {
    /// Bring a file or a folder here, and check its digest.
    Get(super::get::Get),
}

fn pace(target: &Target) -> Duration {
    match target {
        Target::Agent { .. } => FOLLOW_AGENT,
        Target::Store { .. } => FOLLOW_STORE,
    }
}

fn is_over(status: &JobStatus) -> bool {
    status.timestamps.ended.is_some()
}

pub(super) async fn status(
    args: &Status,
    print: &mut dyn FnMut(&str),
) -> Result<ExitStatus, Error> {
    let target = args.target.open().await?;
    let mut last = None;
    loop {
        let status = match target.status().await {
            // An agent that was there has ended since.
            Err(error)
                if args.follow
                    && last.is_some()
                    && error.exit_status() == ExitStatus::Retryable =>
            {
                return Ok(ExitStatus::Completed);
            }
            answer => answer?,
        };
        if last != Some(status.rev) {
            let text = if args.json && args.follow {
                serde_json::to_string(&status)
            } else {
                serde_json::to_string_pretty(&status)
            };
            let text = text.map_err(|error| Error::Bad(error.to_string()))?;
            print(&if args.json { text } else { table(&status) });
        }
        if !args.follow || is_over(&status) {
            return Ok(ExitStatus::Completed);
        }
        last = Some(status.rev);
        tokio::time::sleep(pace(&target)).await;
    }
}

/// A status for people, one thing a line.
fn table(status: &JobStatus) -> String {
    let mut rows: Vec<(&str, String)> = vec![
        ("job", status.id.clone()),
        ("status", format!("{} ({})", status.status, status.phase)),
        ("provider", status.provider.clone()),
        ("attempt", status.attempt.to_string()),
    ];
    let it = &status.progress;
    if let Some(step) = it.step {
        let total = it
            .total_steps
            .map_or_else(String::new, |total| format!(" of {total}"));
        let percent = it
            .percent
            .map_or_else(String::new, |part| format!(" ({part:.1} %)"));
        rows.push(("step", format!("{step}{total}{percent}")));
    }
    let mut number = |name, value: Option<f64>| {
        rows.extend(value.map(|value| (name, format!("{value:.4}"))));
    };
    number("epoch", it.epoch);
    number("loss", it.loss);
    number("val loss", it.val_loss);
    let whole = |value: Option<f64>| value.map(|value| format!("{value:.0}"));
    rows.extend(whole(it.tokens_per_second).map(|text| ("tokens/s", text)));
    rows.extend(it.eta_seconds.map(|eta| ("time left", duration(eta))));
    let checkpoint = &status.checkpoint;
    if let Some(step) = checkpoint.step {
        let risk = checkpoint.steps_at_risk.unwrap_or(0);
        rows.push((
            "checkpoint",
            format!("step {step} in the store, {risk} steps since"),
        ));
    }
    let total = status
        .estimated_total
        .map_or_else(String::new, |it| format!(" of about ${it:.2}"));
    rows.push(("cost", format!("${:.4}{total}", status.cost_so_far)));
    let next = status
        .limits
        .as_ref()
        .and_then(|limits| limits.next_deadline.as_ref());
    rows.extend(next.map(|it| {
        (
            "deadline",
            format!("{} in {}", it.timer, duration(it.in_seconds)),
        )
    }));
    rows.push(("updated", status.timestamps.updated.clone()));
    rows.extend(status.message.clone().map(|message| ("message", message)));
    let mut text = String::new();
    for (name, value) in rows {
        writeln!(text, "{name:<11}{value}").expect("a text grows");
    }
    text
}

fn duration(seconds: u64) -> String {
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds} s"),
        (0, _) => format!("{minutes} min {:02} s", seconds % 60),
        _ => format!("{hours} h {minutes:02} min"),
    }
}

pub(super) async fn logs(args: &Logs, print: &mut dyn FnMut(&str)) -> Result<ExitStatus, Error> {
    let target = args.target.open().await?;
    let (mut after, mut tail) = (None, args.tail);
    loop {
        // Seen before the lines: what was printed before the end is among them.
        let over = target.status().await.is_ok_and(|status| is_over(&status));
        loop {
            let (lines, next) = match target.logs(after, tail).await {
                Err(error) if after.is_some() && error.exit_status() == ExitStatus::Retryable => {
                    return Ok(ExitStatus::Completed);
                }
                answer => answer?,
            };
            for line in &lines {
                if args.json {
                    let text = serde_json::to_string(line);
                    print(&text.map_err(|error| Error::Bad(error.to_string()))?);
                } else {
                    print(&line.line);
                }
            }
            let same = next == after;
            after = next;
            if same || tail.take().is_some() {
                break;
            }
        }
        if !args.follow || over {
            return Ok(ExitStatus::Completed);
        }
        tokio::time::sleep(pace(&target)).await;
    }
}

pub(super) async fn artifacts(
    args: &ArtifactsArgs,
    print: &mut dyn FnMut(&str),
) -> Result<ExitStatus, Error> {
    if let Some(ArtifactsCommand::Get(get)) = &args.command {
        return super::get::get(get, print).await;
    }
    let files = args.target.open().await?.files().await?;
    if args.json {
        let rows = files.iter().map(|it| {
            let mut row = json!({"path": it.path, "bytes": it.bytes});
            if let Some(key) = &it.key {
                row["key"] = json!(key);
            }
            if let Some(sha256) = &it.sha256 {
                row["sha256"] = json!(sha256);
            }
            row
        });
        print(&json!({"artifacts": rows.collect::<Vec<_>>()}).to_string());
        return Ok(ExitStatus::Completed);
    }
    for it in files {
        let digest = it.sha256.unwrap_or_default();
        let digest = digest.get(..12).unwrap_or_default();
        print(&format!("{:>14}  {digest:<12}  {}", it.bytes, it.path));
    }
    Ok(ExitStatus::Completed)
}
