//! The loop that fires schedules: waits for the next tick, works out what each due schedule does now, proposes it.
//!
//! A firing names the tick it is of, and the state accepts each tick once: a leader that is deposed on the tick and the
//! one that follows it may both propose, and one run comes of it. Everything that is due together shares log entries.
//!
//! Each namespace with something due has its share of a round, and what this node cannot read takes nobody's place.
//!
//! Deliberately absent: any memory of what was fired. The state is looked at before every round.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use quorate_proto::log::{Answer, FireSchedule, answer, command};
use quorate_proto::v1::{MissedTicks, RejectionCode, Schedule, ScheduleSpec};
use quorate_raft::state::namespaces::{Namespaces, Part};

use crate::calendar::{Calendar, Covered, NEVER_MS};
use crate::core::Core;

/// Schedules fired by one round.
const DUE_PER_ROUND: usize = 1_000;
/// How long the loop rests at most: leadership may come meanwhile.
const IDLE: Duration = Duration::from_millis(500);
/// How long it trusts that nothing but a change of schedules brings a tick closer.
const LONGEST_REST_MS: u64 = 5_000;
/// The pause after a firing that did not go through.
const RETRY: Duration = Duration::from_millis(50);

/// Starts the loop.
pub(crate) fn start(core: &Arc<Core>) {
    tokio::spawn(run(core.clone()));
}

async fn run(core: Arc<Core>) {
    let mut unreadable = Unreadable::default();
    loop {
        let (next_ms, state_ms) = core.replica.read(|whole| {
            let next_ms = whole.namespaces.iter().filter_map(|part| part.rooms.schedules.next_tick_ms()).min();
            (next_ms, whole.head.now_ms)
        });
        let (Some(next_ms), Some(term)) = (next_ms, core.office()) else {
            rest(&core, IDLE).await;
            continue;
        };
        let now_ms = core.clock.now_ms().max(state_ms);
        if now_ms < next_ms {
            rest(&core, Duration::from_millis((next_ms - now_ms).min(LONGEST_REST_MS))).await;
            continue;
        }
        let due = core.replica.read(|whole| due(whole.namespaces, now_ms, &unreadable, DUE_PER_ROUND));
        if due.is_empty() {
            rest(&core, IDLE).await;
            continue;
        }
        // What turns out to be unreadable is not due in the next round.
        let firings: Vec<(Arc<str>, FireSchedule)> = (due.into_iter())
            .filter_map(|due| prepare(&due, now_ms, &mut unreadable).map(|firing| (due.namespace, firing)))
            .collect();
        let fired = join_all(firings.into_iter().map(|(namespace, firing)| fire(&core, namespace, firing, term))).await;
        if fired.contains(&false) {
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn rest(core: &Core, at_most: Duration) {
    tokio::select! {
        () = core.hubs.schedules_changed() => {}
        () = tokio::time::sleep(at_most) => {}
    }
}

/// What the loop needs to know of a due schedule: all but its template.
struct Due {
    namespace: Arc<str>,
    id: String,
    epoch: u64,
    tick_ms: u64,
    spec: ScheduleSpec,
}

/// Schedules that a binary wrote which knows more expressions or zones than this one: said once, then left alone. By
/// namespace and id, the epoch at which they were found so.
#[derive(Default)]
struct Unreadable {
    epochs: BTreeMap<Arc<str>, BTreeMap<String, u64>>,
}

impl Unreadable {
    fn contains(&self, namespace: &str, schedule: &Schedule) -> bool {
        let epoch = self.epochs.get(namespace).and_then(|epochs| epochs.get(&schedule.id));
        epoch == Some(&schedule.epoch)
    }

    /// How many of a namespace's first due schedules may be such.
    fn count(&self, namespace: &str) -> usize {
        self.epochs.get(namespace).map_or(0, BTreeMap::len)
    }

    /// Whether that is news.
    fn insert(&mut self, due: &Due) -> bool {
        let epochs = self.epochs.entry(due.namespace.clone()).or_default();
        epochs.insert(due.id.clone(), due.epoch) != Some(due.epoch)
    }
}

/// What is due and can be read, earliest first in each namespace: `limit` in all, or rather less.
fn due(namespaces: &Namespaces, now_ms: u64, unreadable: &Unreadable, limit: usize) -> Vec<Due> {
    let has_due = |next_ms: Option<u64>| next_ms.is_some_and(|next_ms| next_ms <= now_ms);
    let parts: Vec<_> = namespaces.iter().filter(|part| has_due(part.rooms.schedules.next_tick_ms())).collect();
    let share = (limit / parts.len().max(1)).max(1);
    let of_part = |part: &Part| -> Vec<Due> {
        // What cannot be read stays due for ever and comes first: it is looked past.
        let due = part.rooms.schedules.due(now_ms, share + unreadable.count(&part.name));
        (due.into_iter())
            .filter(|schedule| !unreadable.contains(&part.name, schedule))
            .take(share)
            .filter_map(|schedule| without_template(&part.name, schedule))
            .collect()
    };
    parts.into_iter().flat_map(of_part).collect()
}

fn without_template(namespace: &Arc<str>, schedule: &Schedule) -> Option<Due> {
    let spec = schedule.spec.as_ref()?;
    Some(Due {
        namespace: namespace.clone(),
        id: schedule.id.clone(),
        epoch: schedule.epoch,
        tick_ms: schedule.next_tick_ms,
        spec: ScheduleSpec {
            schedule_id: spec.schedule_id.clone(),
            cron: spec.cron.clone(),
            time_zone: spec.time_zone.clone(),
            every_ms: spec.every_ms,
            task: None,
            missed: spec.missed,
            overlap: spec.overlap,
            tolerance_ms: spec.tolerance_ms,
        },
    })
}

fn prepare(due: &Due, now_ms: u64, unreadable: &mut Unreadable) -> Option<FireSchedule> {
    match Calendar::of(&due.spec) {
        Ok(calendar) => Some(firing(due, &calendar, now_ms)),
        Err(wrong) => {
            if unreadable.insert(due) {
                tracing::error!(schedule = due.id, wrong.message, "this node cannot fire a schedule");
            }
            None
        }
    }
}

/// What a schedule does now, by how late its tick is and by its policy for missed ones.
fn firing(due: &Due, calendar: &Calendar, now_ms: u64) -> FireSchedule {
    let Due { tick_ms, ref spec, .. } = *due;
    let late = now_ms.saturating_sub(tick_ms) > spec.tolerance_ms;
    let (covered, missed) = match spec.missed() {
        // Those that are late but within the tolerance are not missed: they are fired in the next round.
        MissedTicks::Skip if late => (calendar.covered(tick_ms, now_ms.saturating_sub(spec.tolerance_ms + 1)), true),
        MissedTicks::Once | MissedTicks::Unspecified if late => (calendar.covered(tick_ms, now_ms), false),
        _ => (Covered { ticks: 1, next_ms: calendar.after(tick_ms).unwrap_or(NEVER_MS) }, false),
    };
    FireSchedule {
        schedule_id: due.id.clone(),
        epoch: due.epoch,
        tick_ms,
        next_tick_ms: covered.next_ms,
        ticks: covered.ticks,
        missed,
        task_id: if missed { String::new() } else { crate::grpc::new_id("t") },
    }
}

/// Whether the tick is done, by whomever.
async fn fire(core: &Core, namespace: Arc<str>, firing: FireSchedule, term: u64) -> bool {
    let (id, tick_ms) = (firing.schedule_id.clone(), firing.tick_ms);
    match core.proposer.propose_as_leader(&namespace, command::Body::FireSchedule(firing), term).await {
        Ok(Answer { body: Some(answer::Body::Rejected(rejection)), .. }) => {
            tracing::debug!(schedule = id, tick_ms, rejection.message, "a tick was refused");
            rejection.code() == RejectionCode::Aborted
        }
        Ok(_) => true,
        // If its outcome is unknown, the state will show it, or take it once when it is proposed again.
        Err(error) => {
            tracing::debug!(schedule = id, tick_ms, %error, "a tick was not proposed");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::log::Command;
    use quorate_proto::v1::{CreateScheduleRequest, SetNamespaceRequest, TaskSpec};
    use quorate_raft::apply::Machine;

    use super::*;

    const TOLERANCE_MS: u64 = 60_000;

    /// A schedule of every 10 s whose next tick is at 1,000,000.
    fn every_ten_seconds(missed: MissedTicks) -> (Due, Calendar) {
        let spec = ScheduleSpec {
            every_ms: 10_000,
            missed: missed as i32,
            tolerance_ms: TOLERANCE_MS,
            ..ScheduleSpec::default()
        };
        let calendar = Calendar::of(&spec).unwrap();
        (Due { namespace: "default".into(), id: "s".to_owned(), epoch: 7, tick_ms: 1_000_000, spec }, calendar)
    }

    /// What is proposed `late_ms` after the tick: ticks covered, next tick, whether they are missed.
    fn fired(missed: MissedTicks, late_ms: u64) -> (u64, u64, bool) {
        let (due, calendar) = every_ten_seconds(missed);
        let firing = firing(&due, &calendar, due.tick_ms + late_ms);
        assert_eq!((firing.schedule_id.as_str(), firing.epoch, firing.tick_ms), ("s", 7, 1_000_000));
        assert_eq!(firing.task_id.is_empty(), firing.missed, "{firing:?}");
        (firing.ticks, firing.next_tick_ms, firing.missed)
    }

    #[test]
    fn within_the_tolerance_every_policy_fires_one_tick() {
        for missed in [MissedTicks::Unspecified, MissedTicks::Skip, MissedTicks::Once, MissedTicks::All] {
            for late_ms in [0, 1, 10_000, TOLERANCE_MS] {
                assert_eq!(fired(missed, late_ms), (1, 1_010_000, false), "{missed:?} {late_ms} ms late");
            }
        }
    }

    #[test]
    fn skip_gives_up_what_is_too_late_and_nothing_else() {
        assert_eq!(fired(MissedTicks::Skip, TOLERANCE_MS + 1), (1, 1_010_000, true));
        // At 100 s, the ticks of 0, 10, 20 and 30 s are more than 60 s late; that of 40 s is not.
        assert_eq!(fired(MissedTicks::Skip, 100_000), (4, 1_040_000, true));
    }

    #[test]
    fn once_fires_one_run_for_all_that_passed() {
        assert_eq!(fired(MissedTicks::Once, 100_000), (11, 1_110_000, false));
        assert_eq!(fired(MissedTicks::Unspecified, 100_000), (11, 1_110_000, false));
    }

    #[test]
    fn all_fires_each_tick_oldest_first() {
        assert_eq!(fired(MissedTicks::All, 100_000), (1, 1_010_000, false));
    }

    #[test]
    fn what_cannot_be_read_is_said_once() {
        let (due, _) = every_ten_seconds(MissedTicks::All);
        let due = Due { spec: ScheduleSpec { time_zone: "Mars/Olympus".to_owned(), ..due.spec }, ..due };
        let mut unreadable = Unreadable::default();
        assert_eq!(prepare(&due, 2_000_000, &mut unreadable), None);
        assert!(!unreadable.insert(&due), "it has been said");
        assert!(unreadable.insert(&Due { epoch: 8, ..due }), "it has changed since");
        assert_eq!(unreadable.count("default"), 1);
    }

    fn apply(machine: &mut Machine, namespace: &str, body: command::Body) {
        let command = Command { namespace: namespace.to_owned(), body: Some(body), ..Command::default() };
        let answer = machine.apply(0, 0, vec![command]).unwrap().remove(0);
        assert!(!matches!(answer.body, Some(answer::Body::Rejected(_))), "{answer:?}");
    }

    /// A schedule with a cron expression, which is read here and not by the state.
    fn create(machine: &mut Machine, namespace: &str, id: &str, cron: &str, first_tick_ms: u64) {
        let spec = ScheduleSpec {
            schedule_id: id.to_owned(),
            cron: cron.to_owned(),
            task: Some(TaskSpec { title: "count".to_owned(), ..TaskSpec::default() }),
            ..ScheduleSpec::default()
        };
        let request = CreateScheduleRequest { spec: Some(spec), first_tick_ms, ..CreateScheduleRequest::default() };
        apply(machine, namespace, command::Body::CreateSchedule(request));
    }

    /// What a round fires: namespaces and ids.
    fn round(machine: &Machine, unreadable: &mut Unreadable, limit: usize) -> Vec<String> {
        let due = due(&machine.namespaces, 1_000, unreadable, limit);
        (due.iter())
            .filter_map(|due| prepare(due, 1_000, unreadable).map(|_| format!("{}/{}", due.namespace, due.id)))
            .collect()
    }

    #[test]
    fn what_cannot_be_read_takes_nobodys_place() {
        let mut machine = Machine::in_memory();
        let other = SetNamespaceRequest { name: "other".to_owned(), ..SetNamespaceRequest::default() };
        apply(&mut machine, "", command::Body::SetNamespace(other));
        for id in ["x", "y", "z"] {
            create(&mut machine, "default", id, "from a later version", 100);
        }
        create(&mut machine, "default", "good", "* * * * *", 200);
        create(&mut machine, "other", "good", "* * * * *", 900);
        create(&mut machine, "other", "later", "* * * * *", 1_001);
        let mut unreadable = Unreadable::default();
        assert_eq!(round(&machine, &mut unreadable, 4), ["other/good"], "those of its own namespace come after it");
        assert_eq!(round(&machine, &mut unreadable, 4), ["default/good", "other/good"]);
        assert_eq!(unreadable.count("default"), 3);
    }

    #[test]
    fn each_namespace_has_its_share_of_a_round() {
        let mut machine = Machine::in_memory();
        let other = SetNamespaceRequest { name: "other".to_owned(), ..SetNamespaceRequest::default() };
        apply(&mut machine, "", command::Body::SetNamespace(other));
        for id in ["a", "b", "c", "d", "e"] {
            create(&mut machine, "default", id, "* * * * *", 100);
        }
        create(&mut machine, "other", "f", "* * * * *", 100);
        let mut unreadable = Unreadable::default();
        assert_eq!(round(&machine, &mut unreadable, 4), ["default/a", "default/b", "other/f"]);
        assert_eq!(round(&machine, &mut unreadable, 1), ["default/a", "other/f"], "one of each at least");
    }
}
