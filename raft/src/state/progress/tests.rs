//! A fleet's tasks in miniature: every step is followed by a comparison with the indexes rebuilt from the rows.

use std::collections::BTreeMap;

use super::*;
use crate::storage::rows::MemoryRows;
use crate::storage::txn::Txn;

const MINUTE: u64 = 60_000;

#[derive(Default)]
struct Fleet {
    rooms: Rooms,
    rows: MemoryRows,
    rev: u64,
    now_ms: u64,
    tasks: BTreeMap<String, (TaskSpec, TaskStatus)>,
}

impl Fleet {
    fn write(&mut self, write: impl FnOnce(&mut Rooms, &mut Out<'_, '_>, &Ctx)) {
        self.rev += 1;
        let ctx = Ctx { now_ms: self.now_ms, rev: self.rev, entropy: 7 };
        let mut txn = Txn::new(&self.rows, 0);
        write(&mut self.rooms, &mut Out { txn: &mut txn, effects: &mut Vec::new() }, &ctx);
        for (key, value) in txn.into_writes().rows {
            match value {
                Some(value) => self.rows.0.insert(key, value),
                None => self.rows.0.remove(&key),
            };
        }
        let rebuilt = Progress::rebuild(&self.rows).expect("rows that can be read");
        assert_eq!(rebuilt, self.rooms.progress, "the indexes differ from those rebuilt from the rows");
    }

    /// Moves a task as the tasks' room does: its row first, then the count. `place` is project/epic/feature, for new ones.
    fn step(&mut self, id: &str, place: &str, to: TaskStatus, touched: bool) {
        let mut names = place.split('/').map(str::to_owned);
        let (spec, from) = self.tasks.remove(id).unwrap_or_else(|| {
            let (project, epic, feature) = (names.next(), names.next(), names.next());
            let spec = TaskSpec {
                project: project.unwrap_or_default(),
                epic: epic.unwrap_or_default(),
                feature: feature.unwrap_or_default(),
                ..TaskSpec::default()
            };
            (spec, TaskStatus::Unspecified)
        });
        self.write(|rooms, out, ctx| {
            let key = Key::table(Table::LiveTask).text(id);
            if to == TaskStatus::Unspecified || counts::is_ended(to) {
                out.txn.delete(&key);
            } else {
                let task = Task { spec: Some(spec.clone()), status: to as i32, ..Task::default() };
                out.txn.put(&key, &task);
            }
            moved(rooms, out, ctx, &spec, from, to, touched);
        });
        if to != TaskStatus::Unspecified {
            self.tasks.insert(id.to_owned(), (spec, to));
        }
    }

    fn complete(&mut self, id: &str, place: &str) {
        for to in [TaskStatus::Ready, TaskStatus::InProgress, TaskStatus::Completed] {
            self.step(id, place, to, false);
        }
    }

    /// Milestones, oldest first.
    fn milestones(&self) -> Vec<String> {
        let mut all = Progress::checkpoints(&self.rows, "", 100).expect("rows that can be read");
        all.reverse();
        all.iter().map(|c| format!("{} {}/{}/{}", c.milestone, c.project, c.epic, c.feature)).collect()
    }

    fn history(&self) -> Vec<Sample> {
        self.rooms.progress.history(&self.rows, 0, u64::MAX, 100).expect("rows that can be read")
    }
}

#[test]
fn counts_roll_up_to_the_epic_and_the_project() {
    let mut fleet = Fleet::default();
    fleet.complete("a", "p/e/f");
    fleet.step("b", "p/e/g", TaskStatus::Blocked, false);
    fleet.step("c", "p/d/f", TaskStatus::Failed, false);
    fleet.step("d", "", TaskStatus::Ready, false);
    let report = fleet.rooms.progress.projects("");
    assert_eq!(report.len(), 1, "a task of no project is in none");
    let expected = StatusCounts { completed: 1, blocked: 1, failed: 1, ..StatusCounts::default() };
    assert_eq!(report[0].counts, Some(expected));
    let epics: Vec<(&str, usize)> =
        report[0].epics.iter().map(|epic| (epic.epic.as_str(), epic.features.len())).collect();
    assert_eq!(epics, [("d", 1), ("e", 2)]);
    assert_eq!(fleet.rooms.progress.totals(), StatusCounts { ready: 1, ..expected });
}

#[test]
fn every_tenth_completed_task_is_a_checkpoint() {
    let mut fleet = Fleet::default();
    for n in 0..20 {
        fleet.complete(&format!("t{n}"), "p");
    }
    assert_eq!(fleet.milestones(), ["tasks:10 p//", "tasks:20 p//"]);
}

#[test]
fn a_feature_is_done_once_each_time_its_last_task_ends() {
    let mut fleet = Fleet::default();
    fleet.step("b", "p/e/f", TaskStatus::Ready, false);
    fleet.complete("a", "p/e/f");
    assert!(fleet.milestones().is_empty(), "one of its tasks is still to do");
    fleet.step("b", "", TaskStatus::Cancelled, false);
    assert_eq!(fleet.milestones(), ["feature p/e/f", "epic p/e/"]);
    // Created and failed in one step, or removed: it was done already.
    fleet.step("c", "p/e/f", TaskStatus::Failed, false);
    fleet.step("b", "", TaskStatus::Unspecified, false);
    assert_eq!(fleet.milestones().len(), 2);
    // A dead letter that goes back to the queue undoes it.
    fleet.step("c", "", TaskStatus::Ready, true);
    fleet.step("c", "", TaskStatus::Cancelled, true);
    assert_eq!(fleet.milestones().len(), 4);
}

#[test]
fn a_feature_of_which_nothing_was_completed_is_no_milestone() {
    let mut fleet = Fleet::default();
    fleet.step("a", "p/e/f", TaskStatus::Ready, false);
    fleet.step("a", "", TaskStatus::Cancelled, false);
    assert!(fleet.milestones().is_empty());
}

#[test]
fn a_purge_leaves_nothing_behind() {
    let mut fleet = Fleet::default();
    fleet.complete("a", "p/e/f");
    fleet.complete("b", "");
    assert_eq!(fleet.rooms.progress.completed_unaided(), 2);
    for id in ["a", "b"] {
        fleet.step(id, "", TaskStatus::Unspecified, false);
    }
    assert_eq!(fleet.rooms.progress.tree, Tree::default());
    assert_eq!(fleet.rooms.progress.totals(), StatusCounts::default());
    assert_eq!(fleet.rooms.progress.completed_unaided(), 0);
    let prefix = Key::table(Table::Rollup);
    assert!(!fleet.rows.0.keys().any(|key| key.starts_with(prefix.as_bytes())));
}

#[test]
fn only_tasks_that_nobody_touched_count_as_unaided() {
    let mut fleet = Fleet::default();
    fleet.complete("a", "p");
    fleet.step("b", "p", TaskStatus::InProgress, false);
    fleet.step("b", "", TaskStatus::Reported, false);
    fleet.step("b", "", TaskStatus::Completed, true);
    assert_eq!(fleet.rooms.progress.completed_unaided(), 1);
    fleet.step("b", "", TaskStatus::Unspecified, true);
    assert_eq!(fleet.rooms.progress.completed_unaided(), 1);
}

#[test]
fn a_sample_shows_its_minute_as_it_ended() {
    let mut fleet = Fleet { now_ms: 5 * MINUTE + 1, ..Fleet::default() };
    fleet.complete("a", "p");
    fleet.step("b", "", TaskStatus::Ready, false);
    for _ in 0..2 {
        fleet.write(attempt_ended);
    }
    // Two minutes in which nothing changes have no sample.
    fleet.now_ms = 8 * MINUTE;
    fleet.step("b", "", TaskStatus::InProgress, false);
    fleet.write(attempt_ended);
    let of_minute = |minute: u64, counts: StatusCounts, attempts_ended: u32| Sample {
        at_ms: minute * MINUTE,
        counts: Some(counts),
        agents: 0,
        attempts_ended,
        completed_unaided: 1,
    };
    let (before, now) = (
        StatusCounts { completed: 1, ready: 1, ..StatusCounts::default() },
        StatusCounts { completed: 1, in_progress: 1, ..StatusCounts::default() },
    );
    assert_eq!(fleet.history(), [of_minute(5, before, 2), of_minute(8, now, 1)]);
    let progress = &fleet.rooms.progress;
    let part = |from, before, limit| progress.history(&fleet.rows, from, before, limit).expect("rows").len();
    assert_eq!([part(6 * MINUTE, u64::MAX, 9), part(0, 8 * MINUTE, 9), part(0, u64::MAX, 1)], [1, 1, 1]);
}

#[test]
fn samples_older_than_seven_days_go_a_few_at_a_time() {
    let mut fleet = Fleet::default();
    for minute in 0..150 {
        fleet.now_ms = minute * MINUTE;
        fleet.write(attempt_ended);
    }
    // The sample of minute 149 is written with the first change after it, which is eight days later.
    fleet.now_ms = 150 * MINUTE + 8 * 24 * 60 * MINUTE;
    fleet.write(attempt_ended);
    let oldest = |fleet: &Fleet| fleet.history().first().map(|sample| sample.at_ms);
    assert_eq!(oldest(&fleet), Some(0), "measured from the newest sample, nothing is old yet");
    for (later, expected) in [(1, Some(100 * MINUTE)), (2, Some(fleet.now_ms))] {
        fleet.now_ms += MINUTE;
        fleet.write(attempt_ended);
        assert_eq!(oldest(&fleet), expected, "{later} minutes later");
    }
}

#[test]
fn a_full_tree_takes_known_names_only() {
    let mut progress = Progress::default();
    let ready = |counts: &mut StatusCounts| counts::add(counts, TaskStatus::Ready);
    for n in 0..MAX_LEAVES {
        assert!(progress.has_room("p", "e", &n.to_string()));
        let name = n.to_string();
        progress.tree.change(&Leaf::named("p", "e", &name).expect("a name"), ready);
    }
    assert!(!progress.has_room("p", "e", "another"));
    assert!(progress.has_room("p", "e", "7"));
    assert!(progress.has_room("", "", ""), "a task without names takes no room");
}
