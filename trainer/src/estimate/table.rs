//! The estimate as a table for people, at most 120 columns wide. Called by the command line.

use super::choice::words;
use super::{Estimate, Row, Run};

/// Header, rows, and what they rest on.
pub fn lines(estimate: &Estimate) -> Vec<String> {
    let head = [
        "GPU",
        "provider",
        "memory GiB",
        "batch",
        "recompute",
        "tokens/s",
        "basis",
        "time",
        "on demand",
        "spot",
        "",
    ];
    let mut lines = vec![line(head.map(str::to_owned))];
    lines.extend(estimate.rows.iter().map(row));
    if let Some(run) = &estimate.cpu {
        let memory = format!("{:.1}", run.memory_gib);
        lines.push(line(cells(
            "this CPU",
            "-",
            memory,
            run,
            ["-", "-"].map(str::to_owned),
            "",
        )));
    }
    lines.push(String::new());
    lines.extend(notes(estimate));
    lines
}

fn row(row: &Row) -> String {
    let Some(run) = &row.run else {
        let why = row.unfit.as_deref().unwrap_or("unknown");
        let machine = row.machine.as_ref().map(|name| format!("{name}: "));
        let machine = machine.unwrap_or_default();
        return format!("{:<10}{:<10} {machine}{why}", row.gpu, row.provider);
    };
    let usd = |usd: Option<f64>| usd.map_or_else(|| "-".to_owned(), |usd| format!("${usd:.2}"));
    let memory = format!("{:.1}/{:.1}", run.memory_gib, row.room_gib);
    let prices = [usd(row.on_demand_usd), usd(row.spot_usd)];
    let marks = row.marks.join(", ");
    line(cells(row.gpu, &row.provider, memory, run, prices, &marks))
}

fn cells(
    gpu: &str,
    provider: &str,
    memory: String,
    run: &Run,
    [on_demand, spot]: [String; 2],
    marks: &str,
) -> [String; 11] {
    let star = if run.needs_batch_size_auto { "*" } else { "" };
    let batch = format!(
        "{}x{}{star}",
        run.batch_size, run.gradient_accumulation_steps
    );
    [
        gpu.to_owned(),
        provider.to_owned(),
        memory,
        batch,
        run.recompute.to_owned(),
        tokens(run.tokens_per_second),
        run.basis.name().to_owned(),
        words(run.hours),
        on_demand,
        spot,
        marks.to_owned(),
    ]
}

fn line(cells: [String; 11]) -> String {
    let [
        gpu,
        provider,
        memory,
        batch,
        recompute,
        tokens,
        basis,
        time,
        on_demand,
        spot,
        marks,
    ] = cells;
    let text = format!(
        "{gpu:<10}{provider:<11}{memory:>11}{batch:>8}{recompute:>11}{tokens:>10}  {basis:<9}\
         {time:>9}{on_demand:>11}{spot:>10}  {marks}"
    );
    text.trim_end().to_owned()
}

/// Two digits more would claim what nobody knows.
fn tokens(rate: f64) -> String {
    match rate {
        rate if rate >= 999_500.0 => format!("{:.1}M", rate / 1e6),
        rate if rate >= 1000.0 => format!("{:.0}k", rate / 1e3),
        rate => format!("{rate:.0}"),
    }
}

/// What the figures rest on, a line each.
fn notes(estimate: &Estimate) -> Vec<String> {
    let mut notes = vec![format!(
        "{} iterations of {} tokens, {} evaluations of 2 x {} batches; the machine's start is not \
         in it",
        estimate.iterations,
        estimate.tokens_per_iteration,
        estimate.evaluations,
        estimate.eval_iters
    )];
    notes.push(format!("estimated: {}", estimate.share_source));
    if estimate.cpu.is_some() {
        notes.push(
            "measured: 0.65 of the rate of a large product measured now; bench/RESULTS.md has 0.6 \
             to 0.76"
                .to_owned(),
        );
    }
    let runs = || estimate.rows.iter().filter_map(|row| row.run.as_ref());
    if runs().any(|run| run.needs_batch_size_auto) {
        notes.push("*: with --batch_size=auto, as many tokens an iteration".to_owned());
    }
    for row in &estimate.rows {
        if let Some(machine) = row
            .machine
            .as_ref()
            .filter(|_| row.gpus > 1 && row.run.is_some())
        {
            notes.push(format!(
                "{machine} of {} has {} GPUs, all of them paid for; one trains",
                row.provider, row.gpus
            ));
        }
    }
    let spot = estimate.rows.iter().any(|row| row.spot_usd.is_some());
    let of = &estimate.interruptions;
    if spot {
        notes.push(format!(
            "spot: one interruption in {} assumed (--mtbf), {} to be back, {:.1} s a checkpoint; \
             best saved every {} (Young, Daly)",
            words(of.between_s / 3600.0),
            words(of.restart_s / 3600.0),
            of.checkpoint_s,
            words(estimate.best_checkpoint_interval_s / 3600.0)
        ));
    }
    let dates = estimate.rows.iter().map(|row| row.prices_as_of.as_str());
    if let (Some(first), Some(last)) = (dates.clone().min(), dates.max()) {
        let dates = if first == last {
            first.to_owned()
        } else {
            format!("{first} to {last}")
        };
        notes.push(format!(
            "prices of {dates} (configs/prices.toml): look yours up before you rent"
        ));
    }
    notes.into_iter().flat_map(|note| wrap(&note)).collect()
}

/// Lines of at most 120 columns, the second and later ones set in.
fn wrap(text: &str) -> Vec<String> {
    const COLUMNS_MAX: usize = 120;
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= COLUMNS_MAX => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
            Some(_) => lines.push(format!("  {word}")),
        }
    }
    lines
}
