//! `quorate schedule import`: the schedules of the agents that a configuration calls scheduled.
//!
//! Owns: the order of things. Every file is read, and the cluster asked whether it understands the times, before the
//! first schedule is created. `definition` reads what an agent definition says.
//! Deliberately absent: deleting the schedule of an agent that is in no file any more. Who imports one file of two
//! would lose the other's schedules.

mod definition;

use std::collections::BTreeMap;

use clap::Args;
use quorate_client::Error;
use quorate_client::v1::{PreviewScheduleRequest, Schedule, ScheduleSpec};
use serde_json::json;

use super::shown::schedule_view;
use crate::cli::Context;
use crate::cli::exit::Failure;

pub(super) const EXAMPLES: &str = r#"EXAMPLES:
  quorate schedule import agents/*.yaml
      a schedule for every agent there whose execution_mode is scheduled; one that exists is changed

FILE:
  One agent definition, or a list of them:
  - name: nightly-report          # the schedule's id
    type: reporter                # only agents of this type get its tasks
    execution_mode: scheduled     # autonomous, continuous and collaborative agents are left alone
    schedule:
      cron: "0 2 * * *"           # or every: 30s
      time_zone: Europe/Berlin    # with cron; without it UTC
      missed: once                # skip, once, all
      overlap: skip               # skip, queue, cancel-previous, allow
      tolerance: 60s
      title: nightly report       # from here on: its tasks; without a title they have the name
      description: ..
      payload: {any: value}       # the agent gets it as JSON
      capabilities: [reports]     # what an agent must offer
      priority: high
      timeout: 5m                 # of an attempt
  Needed are name, type, execution_mode and, in schedule, cron or every. Keys of an agent that are not named here
  belong to other programs; keys of schedule that are not named here are refused."#;

/// Flags of `quorate schedule import`.
#[derive(Args)]
pub(crate) struct ImportArgs {
    /// Agent definitions as YAML or JSON (see below)
    #[arg(value_name = "FILE", required = true)]
    files: Vec<String>,
}

/// What files ask for.
#[derive(Debug, Default)]
struct Plan {
    wanted: Vec<Wanted>,
    /// How many agents are not scheduled.
    others: usize,
}

/// A schedule, and where it was found.
#[derive(Debug)]
struct Wanted {
    place: String,
    spec: ScheduleSpec,
}

/// Does what the arguments say.
pub(super) async fn run(context: &Context, args: ImportArgs) -> Result<(), Failure> {
    let mut files = Vec::with_capacity(args.files.len());
    for name in args.files {
        let bytes = tokio::fs::read(&name).await.map_err(|error| Failure::bad_input(format!("{name}: {error}")))?;
        files.push((name, bytes));
    }
    let plan = plan(&files).map_err(Failure::bad_input)?;
    check_times(context, &plan.wanted).await?;
    let (schedules, rev) = create(context, plan.wanted).await?;
    context.out.show(
        || {
            json!({
                "schedules": schedules.iter().map(schedule_view).collect::<Vec<_>>(),
                "not_scheduled": plan.others,
                "rev": rev,
            })
        },
        || summary(schedules.len(), plan.others),
    )
}

/// Reads every file, each a name and its bytes.
fn plan(files: &[(String, Vec<u8>)]) -> Result<Plan, String> {
    let mut plan = Plan::default();
    let mut named: BTreeMap<String, &str> = BTreeMap::new();
    for (file, bytes) in files {
        let found = definition::parse(bytes).map_err(|message| format!("{file}: {message}"))?;
        plan.others += found.others;
        for spec in found.specs {
            let place = format!("{file}: {}", spec.schedule_id);
            if let Some(earlier) = named.insert(spec.schedule_id.clone(), file) {
                return Err(format!("{place}: name: a scheduled agent of this name stands in {earlier} already"));
            }
            plan.wanted.push(Wanted { place, spec });
        }
    }
    Ok(plan)
}

/// Lets the cluster refuse expressions, zones and intervals while nothing has been created.
async fn check_times(context: &Context, wanted: &[Wanted]) -> Result<(), Failure> {
    for Wanted { place, spec } in wanted {
        let request = PreviewScheduleRequest { spec: Some(spec.clone()), from_ms: 0, count: 1 };
        context.client.schedules().preview(request).await.map_err(|error| refused(place, error))?;
    }
    Ok(())
}

/// Creates or changes every schedule; the rev is that of the last one.
async fn create(context: &Context, wanted: Vec<Wanted>) -> Result<(Vec<Schedule>, Option<u64>), Failure> {
    let mut schedules = Vec::with_capacity(wanted.len());
    let mut rev = None;
    for Wanted { place, spec } in wanted {
        let answer = context.client.schedules().create(spec, true).await.map_err(|error| {
            let place = match schedules.len() {
                0 => place,
                done => format!("{place} (number {} of the import; those before it are imported)", done + 1),
            };
            refused(&place, error)
        })?;
        schedules.push(answer.schedule.unwrap_or_default());
        rev = Some(answer.rev);
    }
    Ok((schedules, rev))
}

/// The failure with its place; its exit code stays.
fn refused(place: &str, error: Error) -> Failure {
    Failure::from_anyhow(&anyhow::Error::new(Failure::from(error)).context(place.to_owned()))
}

/// `3 schedules imported, 2 agents are not scheduled`
fn summary(schedules: usize, others: usize) -> String {
    let imported = if schedules == 1 { "schedule imported" } else { "schedules imported" };
    let left = if others == 1 { "agent is not scheduled" } else { "agents are not scheduled" };
    format!("{schedules} {imported}, {others} {left}")
}

#[cfg(test)]
mod tests {
    use quorate_client::v1::RejectionCode;

    use super::*;

    const NIGHTLY: &str = "{name: nightly, type: t, execution_mode: scheduled, schedule: {every: 1h}}";
    const WATCHER: &str = "{name: watcher, type: t, execution_mode: continuous}";

    fn files(files: &[(&str, &str)]) -> Result<Plan, String> {
        let files: Vec<_> = files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect();
        plan(&files)
    }

    #[test]
    fn files_are_read_together() {
        let plan = files(&[("a.yaml", NIGHTLY), ("b.yaml", &format!("[{WATCHER}, {WATCHER}]"))]).unwrap();
        assert_eq!((plan.wanted.len(), plan.others), (1, 2), "only scheduled agents need names of their own");
        assert_eq!(plan.wanted[0].place, "a.yaml: nightly");
    }

    #[test]
    fn mistakes_name_the_file() {
        let wrong = files(&[("a.yaml", NIGHTLY), ("b.yaml", "[{name: x, execution_mode: often}]")]).unwrap_err();
        assert!(wrong.starts_with("b.yaml: x: execution_mode: often: expected one of"), "{wrong}");
        let twice = files(&[("a.yaml", NIGHTLY), ("b.yaml", NIGHTLY)]).unwrap_err();
        assert!(twice.starts_with("b.yaml: nightly: name: ") && twice.contains("a.yaml"), "{twice}");
    }

    #[test]
    fn what_the_cluster_refuses_keeps_its_exit_code_and_has_a_place() {
        let error = |code| {
            let message = "spec.cron must be five fields".to_owned();
            refused("a.yaml: nightly", Error::Rejected { code, field: "spec.cron".to_owned(), message })
        };
        let failure = error(RejectionCode::InvalidArgument);
        assert_eq!(failure.to_string(), "a.yaml: nightly: spec.cron must be five fields");
        assert_eq!((failure.code(), error(RejectionCode::ResourceExhausted).code()), (2, 1));
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!(summary(3, 2), "3 schedules imported, 2 agents are not scheduled");
        assert_eq!(summary(1, 1), "1 schedule imported, 1 agent is not scheduled");
        assert_eq!(summary(0, 0), "0 schedules imported, 0 agents are not scheduled");
    }
}
