//! `quorate stats`: how the work stood over the past hours.

use std::time::Duration;

use clap::Subcommand;
use quorate_client::v1::{HistoryRequest, Sample, StatusCounts};
use serde_json::{Value, json};

use super::Context;
use super::exit::Failure;
use super::output::{age, now_ms, table};
use super::project::{counts_view, failed, waiting};
use super::values;

const HISTORY_EXAMPLES: &str = "\
EXAMPLES:
  quorate stats history
      the last day, hour by hour
  quorate stats history --hours 1
      the last hour, in steps of two minutes
  quorate stats history --hours 168 -o json
      every minute of the last seven days in which something changed, for a program";

const HOUR_MS: u64 = 3_600_000;
/// As many as the cluster keeps.
const MOST_SAMPLES: u32 = 10_080;
/// A table of more lines than these is not read.
const MOST_ROWS: u64 = 30;
/// What one row may stand for, in minutes.
const STEPS: [u64; 7] = [1, 2, 5, 15, 60, 180, 360];
const SPARKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// `quorate stats …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show how many tasks stood where in the past, and how many attempts ended; seven days are kept
    #[command(after_help = HISTORY_EXAMPLES)]
    History {
        /// How far back
        #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=168))]
        hours: u64,
    },
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    let Command::History { hours } = command;
    let now = now_ms();
    let from_ms = now.saturating_sub(hours * HOUR_MS);
    let request = HistoryRequest { from_ms, limit: MOST_SAMPLES, ..HistoryRequest::default() };
    let answer = context.client.progress().history(request).await?;
    context.out.show(
        || json!({ "samples": answer.samples.iter().map(view).collect::<Vec<_>>(), "rev": answer.rev }),
        || text(&answer.samples, from_ms, now),
    )
}

fn view(sample: &Sample) -> Value {
    json!({
        "at_ms": sample.at_ms,
        "counts": counts_view(&sample.counts.unwrap_or_default()),
        "agents": sample.agents,
        "attempts_ended": sample.attempts_ended,
        "completed_unaided": sample.completed_unaided,
    })
}

/// One row of the table: the last sample of a span of time, and what ended in all of it.
#[derive(Debug, PartialEq)]
struct Step {
    from_ms: u64,
    last: Sample,
    attempts_ended: u64,
}

fn text(samples: &[Sample], from_ms: u64, now_ms: u64) -> String {
    let step_ms = step_ms(now_ms.saturating_sub(from_ms));
    let steps = steps(samples, from_ms, step_ms);
    let header = ["since", "waiting", "in progress", "reported", "completed", "failed", "agents", "attempts ended"];
    let rows = steps.iter().map(|step| row(step, now_ms)).collect();
    let table = table(header, rows, "nothing changed in that time");
    match (samples.first(), samples.last()) {
        (Some(first), Some(last)) => {
            format!(
                "{table}\nattempts ended  {}\n{}",
                spark(&steps, from_ms, now_ms, step_ms),
                rates(first, last, now_ms)
            )
        }
        _ => table,
    }
}

/// The shortest step that keeps the table readable.
fn step_ms(window_ms: u64) -> u64 {
    let minutes = window_ms.div_ceil(60_000);
    let step = STEPS.into_iter().find(|step| minutes.div_ceil(*step) <= MOST_ROWS).unwrap_or(STEPS[STEPS.len() - 1]);
    step * 60_000
}

/// Steps in which nothing changed are left out.
fn steps(samples: &[Sample], from_ms: u64, step_ms: u64) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for sample in samples {
        let at = sample.at_ms.saturating_sub(from_ms) / step_ms * step_ms + from_ms;
        let ended = u64::from(sample.attempts_ended);
        match steps.last_mut() {
            Some(step) if step.from_ms == at => {
                step.last = *sample;
                step.attempts_ended += ended;
            }
            _ => steps.push(Step { from_ms: at, last: *sample, attempts_ended: ended }),
        }
    }
    steps
}

fn row(step: &Step, now_ms: u64) -> [String; 8] {
    let counts = step.last.counts.unwrap_or_default();
    [
        format!("{} ago", age(step.from_ms, now_ms)),
        waiting(&counts).to_string(),
        counts.in_progress.to_string(),
        counts.reported.to_string(),
        counts.completed.to_string(),
        failed(&counts).to_string(),
        step.last.agents.to_string(),
        step.attempts_ended.to_string(),
    ]
}

/// A column a step, the empty ones included, as high as the share of the busiest.
fn spark(steps: &[Step], from_ms: u64, now_ms: u64, step_ms: u64) -> String {
    let most = steps.iter().map(|step| step.attempts_ended).max().unwrap_or_default().max(1);
    let columns = now_ms.saturating_sub(from_ms).div_ceil(step_ms);
    let ended_at = |column: u64| {
        let at = from_ms + column * step_ms;
        steps.iter().find(|step| step.from_ms == at).map_or(0, |step| step.attempts_ended)
    };
    (0..columns).map(|column| height(ended_at(column), most)).collect()
}

fn height(count: u64, most: u64) -> char {
    if count == 0 {
        return ' ';
    }
    let top = SPARKS.len() - 1;
    let at = usize::try_from(u128::from(count) * top as u128 / u128::from(most)).unwrap_or(top);
    SPARKS[at.min(top)]
}

/// What the first and the last sample say together.
fn rates(first: &Sample, last: &Sample, now_ms: u64) -> String {
    let (before, now) = (first.counts.unwrap_or_default(), last.counts.unwrap_or_default());
    let done = now.completed.saturating_sub(before.completed);
    let over = Duration::from_millis(now_ms.saturating_sub(first.at_ms).max(60_000));
    let per_hour = u128::from(done) * u128::from(HOUR_MS) / u128::from(values::millis(over));
    format!(
        "{done} tasks completed since the first of these, {per_hour} an hour; \
         of all that ended, {} completed; {} of those unaided",
        share(now.completed, ended(&now)),
        share(last.completed_unaided, now.completed),
    )
}

/// What ended on its own account: nobody cancelled it, and it ran.
fn ended(counts: &StatusCounts) -> u64 {
    counts.completed + failed(counts)
}

fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let permille = u128::from(part) * 1_000 / u128::from(whole);
    format!("{}.{}%", permille / 10, permille % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;

    fn sample(minute: u64, completed: u64, attempts_ended: u32) -> Sample {
        let counts = Some(StatusCounts { completed, ..StatusCounts::default() });
        Sample { at_ms: minute * MINUTE, counts, attempts_ended, ..Sample::default() }
    }

    #[test]
    fn the_step_grows_with_the_window() {
        let steps = [1, 24, 48, 168].map(|hours| step_ms(hours * HOUR_MS) / MINUTE);
        assert_eq!(steps, [2_u64, 60, 180, 360]);
    }

    #[test]
    fn a_step_has_the_last_counts_and_the_sum_of_what_ended() {
        let samples = [sample(0, 1, 1), sample(3, 2, 2), sample(10, 5, 4)];
        let steps = steps(&samples, 0, 5 * MINUTE);
        let shown: Vec<_> = steps
            .iter()
            .map(|step| (step.from_ms / MINUTE, step.last.counts.unwrap_or_default().completed, step.attempts_ended))
            .collect();
        assert_eq!(shown, [(0, 2, 3), (10, 5, 4)]);
        // The step between them had nothing.
        assert_eq!(spark(&steps, 0, 15 * MINUTE, 5 * MINUTE), "▆ █");
    }

    #[test]
    fn rates_are_over_the_time_that_is_shown() {
        let (first, mut last) = (sample(0, 10, 0), sample(60, 40, 0));
        last.completed_unaided = 38;
        let shown = rates(&first, &last, 120 * MINUTE);
        assert!(shown.starts_with("30 tasks completed since the first of these, 15 an hour;"), "{shown}");
        assert!(shown.ends_with("100.0% completed; 95.0% of those unaided"), "{shown}");
        assert_eq!(share(0, 0), "-");
    }

    #[test]
    fn a_quiet_time_says_so() {
        assert_eq!(text(&[], 0, HOUR_MS), "nothing changed in that time");
    }
}
