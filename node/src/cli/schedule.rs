//! `quorate schedule`: tasks that are submitted by the clock.

mod import;
mod shown;

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use quorate_client::v1::{
    MissedTicks, Overlap, PreviewScheduleRequest, RunOutcome, Schedule, ScheduleSpec, SubmitTasksRequest, TaskSpec,
};
use serde_json::json;

use self::import::ImportArgs;
use self::shown::{ahead, next, run_row, schedule_facts, schedule_row, when};
pub(super) use self::shown::{run_outcome, run_view, schedule_view};
use super::exit::Failure;
use super::output::{now_ms, table};
use super::submit::{self, SubmitArgs};
use super::{Context, values};
use crate::calendar::written;

const CREATE_EXAMPLES: &str = r#"EXAMPLES:
  quorate schedule create nightly --cron "0 2 * * *" --tz Europe/Berlin --title "nightly report" --capability reports
      every night at two o'clock, summer and winter
  quorate schedule create sweep --every 30s --missed skip --title sweep --agent janitor
      every 30 seconds; what nobody could run in time is left out
  quorate schedule create sync --cron "*/10 * * * * *" --overlap cancel-previous --replace task.json
      six fields begin with seconds; the task is read from a file; an existing sync is changed

The task is given as in `quorate task submit`, by flags or as a file with one task. It may have no id, key or
start time of its own. An attempt may run for 5m unless the task says otherwise."#;

const PREVIEW_EXAMPLES: &str = r#"EXAMPLES:
  quorate schedule preview --cron "30 2 * * *" --tz Europe/Berlin --count 10
      the next ten times, without creating anything"#;

/// `quorate schedule …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Submit a task at given times
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Box<CreateArgs>),
    /// Create or change the schedules of agents that a configuration calls scheduled
    #[command(after_help = import::EXAMPLES)]
    Import(ImportArgs),
    /// List schedules, by id
    List,
    /// Show one schedule and what it submits
    Show {
        /// The schedule
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Remove a schedule and its history; tasks that it submitted stay
    Delete {
        /// The schedule
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Stop the runs of a schedule until it is resumed
    Pause {
        /// The schedule
        #[arg(value_name = "ID")]
        id: String,
    },
    /// End a pause; ticks that fell into it count as missed
    Resume {
        /// The schedule
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Run a schedule once now, besides its times
    Run {
        /// The schedule
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Show the latest runs of a schedule, newest first, and what came of them
    History {
        /// The schedule
        #[arg(value_name = "ID")]
        id: String,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        limit: u32,
    },
    /// Show when a schedule would run; nothing is created
    #[command(after_help = PREVIEW_EXAMPLES)]
    Preview {
        #[command(flatten)]
        times: Times,
        /// How many times
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
        count: u32,
    },
}

/// When it ticks.
#[derive(Args)]
pub(crate) struct Times {
    /// Five fields: minute, hour, day of month, month, day of week; or six, with seconds first
    #[arg(long, value_name = "EXPRESSION", required_unless_present = "every", conflicts_with = "every")]
    cron: Option<String>,
    /// The time from one run to the next, from 1s to 365d
    #[arg(long, value_name = "DURATION", value_parser = values::positive_duration)]
    every: Option<Duration>,
    /// The time zone of the expression, such as Europe/Berlin (default UTC)
    #[arg(long, value_name = "ZONE", requires = "cron")]
    tz: Option<String>,
}

/// Flags of `quorate schedule create`.
#[derive(Args)]
pub(crate) struct CreateArgs {
    /// The schedule's id
    // Not named `id`: that is the task's flag.
    #[arg(value_name = "ID")]
    schedule_id: String,
    #[command(flatten)]
    times: Times,
    /// What becomes of times that passed while nobody could run them
    #[arg(long, value_enum, value_name = "POLICY", default_value = "once")]
    missed: Missed,
    /// What a run does while the task of the one before has not ended
    #[arg(long, value_enum, value_name = "POLICY", default_value = "skip")]
    overlap: Overlapping,
    /// How late a run may be before its time counts as missed (default 60s)
    #[arg(long, value_name = "DURATION", value_parser = values::positive_duration)]
    tolerance: Option<Duration>,
    /// Change the schedule if it exists; it keeps its history
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    task: SubmitArgs,
}

/// [`MissedTicks`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Missed {
    /// Nothing but a record
    Skip,
    /// One run for all of them
    Once,
    /// A run for each, oldest first
    All,
}

impl From<Missed> for MissedTicks {
    fn from(missed: Missed) -> Self {
        match missed {
            Missed::Skip => MissedTicks::Skip,
            Missed::Once => MissedTicks::Once,
            Missed::All => MissedTicks::All,
        }
    }
}

/// [`Overlap`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Overlapping {
    /// Nothing but a record
    Skip,
    /// Its task waits for the earlier one to end
    Queue,
    /// It cancels the earlier one
    CancelPrevious,
    /// Both run
    Allow,
}

impl From<Overlapping> for Overlap {
    fn from(overlapping: Overlapping) -> Self {
        match overlapping {
            Overlapping::Skip => Overlap::Skip,
            Overlapping::Queue => Overlap::Queue,
            Overlapping::CancelPrevious => Overlap::CancelPrevious,
            Overlapping::Allow => Overlap::Allow,
        }
    }
}

impl Times {
    fn spec(self) -> ScheduleSpec {
        ScheduleSpec {
            cron: self.cron.unwrap_or_default(),
            time_zone: self.tz.unwrap_or_default(),
            every_ms: self.every.map(values::millis).unwrap_or_default(),
            ..ScheduleSpec::default()
        }
    }
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Create(args) => create(context, *args).await,
        Command::Import(args) => import::run(context, args).await,
        Command::List => list(context).await,
        Command::Show { id } => show(context, &id).await,
        Command::Delete { id } => delete(context, &id).await,
        Command::Pause { id } => pause(context, &id, true).await,
        Command::Resume { id } => pause(context, &id, false).await,
        Command::Run { id } => run_now(context, &id).await,
        Command::History { id, limit } => history(context, &id, limit).await,
        Command::Preview { times, count } => preview(context, times.spec(), count).await,
    }
}

async fn create(context: &Context, args: CreateArgs) -> Result<(), Failure> {
    let task = template(submit::request(args.task).await?)?;
    let spec = ScheduleSpec {
        schedule_id: args.schedule_id,
        task: Some(task),
        missed: MissedTicks::from(args.missed) as i32,
        overlap: Overlap::from(args.overlap) as i32,
        tolerance_ms: args.tolerance.map(values::millis).unwrap_or_default(),
        ..args.times.spec()
    };
    let answer = context.client.schedules().create(spec, args.replace).await?;
    told(context, answer.schedule, answer.rev)
}

/// The one task that each run submits.
fn template(request: SubmitTasksRequest) -> Result<TaskSpec, Failure> {
    if request.spawn.is_some() || request.admit_cycles {
        return Err(Failure::bad_input("--parent and --import are not for schedules"));
    }
    let count = request.tasks.len();
    match request.tasks.into_iter().next() {
        Some(task) if count == 1 => Ok(task),
        _ => Err(Failure::bad_input(format!("a schedule submits one task; the file holds {count}"))),
    }
}

/// One line of a schedule that was changed.
fn told(context: &Context, schedule: Option<Schedule>, rev: u64) -> Result<(), Failure> {
    let schedule = schedule.unwrap_or_default();
    context.out.show(
        || json!({ "schedule": schedule_view(&schedule), "rev": rev }),
        || format!("{}: {}, next {}", schedule.id, when(&schedule), next(&schedule, now_ms())),
    )
}

async fn list(context: &Context) -> Result<(), Failure> {
    let answer = context.client.schedules().list().await?;
    context.out.show(
        || json!({ "schedules": answer.schedules.iter().map(schedule_view).collect::<Vec<_>>(), "rev": answer.rev }),
        || {
            let now = now_ms();
            let header = ["id", "when", "next", "last", "last task", "runs", "missed", "overlapped"];
            let rows = answer.schedules.iter().map(|schedule| schedule_row(schedule, now)).collect();
            table(header, rows, "no schedules")
        },
    )
}

async fn show(context: &Context, id: &str) -> Result<(), Failure> {
    let answer = context.client.schedules().get(id).await?;
    let schedule = answer.schedule.ok_or_else(|| Failure::not_found(format!("no schedule {id}")))?;
    context
        .out
        .show(|| json!({ "schedule": schedule_view(&schedule), "rev": answer.rev }), || schedule_facts(&schedule))
}

async fn delete(context: &Context, id: &str) -> Result<(), Failure> {
    let answer = context.client.schedules().delete(id).await?;
    context.out.show(|| json!({ "schedule_id": id, "rev": answer.rev }), || format!("{id} is deleted"))
}

async fn pause(context: &Context, id: &str, paused: bool) -> Result<(), Failure> {
    let answer = context.client.schedules().pause(id, paused).await?;
    told(context, answer.schedule, answer.rev)
}

async fn run_now(context: &Context, id: &str) -> Result<(), Failure> {
    let answer = context.client.schedules().run_now(None, id).await?;
    let run = answer.run.unwrap_or_default();
    context.out.show(
        || json!({ "run": run_view(&run), "rev": answer.rev }),
        || match run.outcome() {
            RunOutcome::Fired => run.task_id.clone(),
            _ => format!("nothing was submitted: the run is {}", run_outcome(run.outcome)),
        },
    )
}

async fn history(context: &Context, id: &str, limit: u32) -> Result<(), Failure> {
    let answer = context.client.schedules().history(id, limit).await?;
    context.out.show(
        || json!({ "runs": answer.runs.iter().map(run_view).collect::<Vec<_>>(), "rev": answer.rev }),
        || {
            let header = ["time", "late", "outcome", "times", "task", "status", "started after", "took", "error"];
            table(header, answer.runs.iter().map(run_row).collect(), "no runs yet")
        },
    )
}

async fn preview(context: &Context, spec: ScheduleSpec, count: u32) -> Result<(), Failure> {
    let zone = spec.time_zone.clone();
    let request = PreviewScheduleRequest { spec: Some(spec), from_ms: 0, count };
    let answer = context.client.schedules().preview(request).await?;
    context.out.show(
        || json!({ "ticks_ms": answer.ticks_ms }),
        || {
            let now = now_ms();
            let row = |tick_ms: &u64| [written(*tick_ms, &zone), written(*tick_ms, ""), ahead(*tick_ms, now)];
            table(["time", "UTC", "in"], answer.ticks_ms.iter().map(row).collect(), "never")
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &[&str]) -> Result<Command, clap::Error> {
        crate::cli::subcommand([&["schedule"][..], line].concat())
    }

    #[test]
    fn times_are_an_expression_or_an_interval() {
        let spec = |line: &[&str]| match parsed(&[&["preview"][..], line].concat()) {
            Ok(Command::Preview { times, .. }) => times.spec(),
            _ => panic!("{line:?} is not understood"),
        };
        let cron = spec(&["--cron", "0 2 * * *", "--tz", "Europe/Berlin"]);
        assert_eq!((cron.cron.as_str(), cron.time_zone.as_str(), cron.every_ms), ("0 2 * * *", "Europe/Berlin", 0));
        let every = spec(&["--every", "30s"]);
        assert_eq!((every.cron.as_str(), every.every_ms), ("", 30_000));
        for wrong in [&["preview"][..], &["preview", "--cron", "a", "--every", "1s"], &["preview", "--tz", "UTC"]] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_task_is_given_by_flags_or_by_a_file() {
        let create = |line: &[&str]| match parsed(&[&["create", "nightly", "--every", "30s"][..], line].concat()) {
            Ok(Command::Create(args)) => Some(args),
            _ => None,
        };
        let args = create(&["--title", "count", "--capability", "sums", "--overlap", "cancel-previous"]).unwrap();
        assert_eq!((args.schedule_id.as_str(), args.missed, args.replace), ("nightly", Missed::Once, false));
        assert_eq!(Overlap::from(args.overlap), Overlap::CancelPrevious);
        assert!(create(&["task.json", "--replace"]).is_some());
        assert!(create(&[]).is_none(), "without a task");
        assert!(create(&["task.json", "--title", "count"]).is_none(), "with two");
    }

    #[test]
    fn an_import_needs_a_file() {
        assert!(matches!(parsed(&["import", "a.yaml", "b.json"]), Ok(Command::Import(_))));
        assert!(parsed(&["import"]).is_err());
    }

    #[test]
    fn a_schedule_submits_one_task() {
        let tasks = |count| SubmitTasksRequest {
            tasks: vec![TaskSpec { title: "a".to_owned(), ..TaskSpec::default() }; count],
            ..SubmitTasksRequest::default()
        };
        assert_eq!(template(tasks(1)).map(|task| task.title).ok(), Some("a".to_owned()));
        assert!(template(tasks(2)).is_err());
        assert!(template(SubmitTasksRequest { admit_cycles: true, ..tasks(1) }).is_err());
    }
}
