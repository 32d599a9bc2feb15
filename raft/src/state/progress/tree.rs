//! The tree: projects, their epics, and the epics' features, each with its counts.
//!
//! A task that names only some of the three is counted under empty names: a feature without an epic belongs to the
//! unnamed epic of its project. A task that names none is not in the tree.

use std::borrow::Cow;
use std::collections::BTreeMap;

use quorate_proto::v1::{EpicProgress, FeatureProgress, ProjectProgress, StatusCounts, TaskSpec};

use super::counts;
use crate::error::Fatal;
use crate::state::Out;
use crate::storage::keys::{Key, Table};

/// Where a task is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leaf<'a> {
    pub(super) project: Cow<'a, str>,
    pub(super) epic: Cow<'a, str>,
    pub(super) feature: Cow<'a, str>,
}

impl<'a> Leaf<'a> {
    /// Where this task is counted; `None` if it names no project, epic or feature.
    pub(super) fn of(spec: &'a TaskSpec) -> Option<Self> {
        Leaf::named(&spec.project, &spec.epic, &spec.feature)
    }

    pub(super) fn named(project: &'a str, epic: &'a str, feature: &'a str) -> Option<Self> {
        if project.is_empty() && epic.is_empty() && feature.is_empty() {
            return None;
        }
        Some(Leaf { project: storable(project), epic: storable(epic), feature: storable(feature) })
    }

    fn key(&self) -> Key {
        Key::table(Table::Rollup).text(&self.project).text(&self.epic).text(&self.feature)
    }
}

/// A name as it can stand in a key, where a zero byte ends it.
fn storable(name: &str) -> Cow<'_, str> {
    if name.contains('\0') { Cow::Owned(name.replace('\0', "\u{FFFD}")) } else { Cow::Borrowed(name) }
}

/// The leaf out of a Rollup key: tag, then three names, each with a zero byte behind it.
pub(super) fn split_key(key: &[u8]) -> Result<Leaf<'_>, Fatal> {
    let corrupt = || Fatal::Corrupt(format!("not a roll-up key: {key:?}"));
    let text = key.get(1..).and_then(|names| names.strip_suffix(&[0_u8])).ok_or_else(corrupt)?;
    let mut names = std::str::from_utf8(text).map_err(|_| corrupt())?.split('\0');
    match (names.next(), names.next(), names.next(), names.next()) {
        (Some(project), Some(epic), Some(feature), None) => Leaf::named(project, epic, feature).ok_or_else(corrupt),
        _ => Err(corrupt()),
    }
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Project {
    counts: StatusCounts,
    epics: BTreeMap<String, Epic>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Epic {
    counts: StatusCounts,
    features: BTreeMap<String, StatusCounts>,
}

/// Every branch in which a task is counted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Tree {
    projects: BTreeMap<String, Project>,
    /// Features over all projects, the unnamed ones included.
    leaves: usize,
}

impl Tree {
    /// Changes the counts of a feature, its epic and its project alike. A branch comes and goes with its tasks.
    pub(super) fn change(&mut self, leaf: &Leaf<'_>, change: impl Fn(&mut StatusCounts)) {
        let Tree { projects, leaves } = self;
        within(projects, &leaf.project, |project| {
            change(&mut project.counts);
            within(&mut project.epics, &leaf.epic, |epic| {
                change(&mut epic.counts);
                let before = epic.features.len();
                within(&mut epic.features, &leaf.feature, |feature| {
                    change(feature);
                    !counts::is_empty(feature)
                });
                *leaves = *leaves + epic.features.len() - before;
                !epic.features.is_empty()
            });
            !project.epics.is_empty()
        });
    }

    /// Writes the row of a feature: its ended tasks. None of them, no row.
    pub(super) fn store(&self, out: &mut Out<'_, '_>, leaf: &Leaf<'_>) {
        let ended = self.feature(leaf).map(counts::ended).unwrap_or_default();
        if counts::is_empty(&ended) {
            out.txn.delete(&leaf.key());
        } else {
            out.txn.put(&leaf.key(), &ended);
        }
    }

    pub(super) fn leaves(&self) -> usize {
        self.leaves
    }

    pub(super) fn project(&self, leaf: &Leaf<'_>) -> Option<&StatusCounts> {
        self.projects.get(&*leaf.project).map(|project| &project.counts)
    }

    pub(super) fn epic(&self, leaf: &Leaf<'_>) -> Option<&StatusCounts> {
        self.epic_of(leaf).map(|epic| &epic.counts)
    }

    pub(super) fn feature(&self, leaf: &Leaf<'_>) -> Option<&StatusCounts> {
        self.epic_of(leaf)?.features.get(&*leaf.feature)
    }

    /// Every project, or the one of this name.
    pub(super) fn report(&self, filter: &str) -> Vec<ProjectProgress> {
        if filter.is_empty() {
            return self.projects.iter().map(|(name, project)| project_report(name, project)).collect();
        }
        self.projects.get(filter).map(|project| project_report(filter, project)).into_iter().collect()
    }

    fn epic_of(&self, leaf: &Leaf<'_>) -> Option<&Epic> {
        self.projects.get(&*leaf.project)?.epics.get(&*leaf.epic)
    }
}

/// Changes the value of a name, which need not be there yet; `change` tells whether it stays.
fn within<V: Default>(map: &mut BTreeMap<String, V>, name: &str, change: impl FnOnce(&mut V) -> bool) {
    match map.get_mut(name) {
        Some(value) => {
            if !change(value) {
                map.remove(name);
            }
        }
        None => {
            let mut value = V::default();
            if change(&mut value) {
                map.insert(name.to_owned(), value);
            }
        }
    }
}

fn project_report(name: &str, project: &Project) -> ProjectProgress {
    let epics = project.epics.iter().map(|(name, epic)| epic_report(name, epic)).collect();
    ProjectProgress { project: name.to_owned(), counts: Some(project.counts), epics }
}

fn epic_report(name: &str, epic: &Epic) -> EpicProgress {
    let features = (epic.features.iter())
        .map(|(name, counts)| FeatureProgress { feature: name.clone(), counts: Some(*counts) })
        .collect();
    EpicProgress { epic: name.to_owned(), counts: Some(epic.counts), features }
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::TaskStatus;

    use super::*;

    fn leaf<'a>(project: &'a str, epic: &'a str, feature: &'a str) -> Leaf<'a> {
        Leaf::named(project, epic, feature).expect("a name")
    }

    #[test]
    fn a_change_reaches_every_level_and_empty_branches_go() {
        let mut tree = Tree::default();
        let (one, other) = (leaf("p", "e", "f"), leaf("p", "e", "g"));
        for leaf in [&one, &one, &other] {
            tree.change(leaf, |counts| counts::add(counts, TaskStatus::Ready));
        }
        let ready = |counts: Option<&StatusCounts>| counts.map(|counts| counts.ready);
        assert_eq!((ready(tree.project(&one)), ready(tree.epic(&one))), (Some(3), Some(3)));
        assert_eq!((ready(tree.feature(&one)), ready(tree.feature(&other))), (Some(2), Some(1)));
        assert_eq!(tree.leaves(), 2);
        for leaf in [&one, &other, &one] {
            tree.change(leaf, |counts| counts::take(counts, TaskStatus::Ready));
        }
        assert_eq!(tree, Tree::default());
    }

    #[test]
    fn keys_read_back_and_no_two_leaves_share_one() {
        let leaves = [
            leaf("p", "e", "f"),
            leaf("p", "", "f"),
            leaf("", "", "f"),
            leaf("p", "e", ""),
            leaf("pe", "", ""),
            leaf("p\0e", "", ""),
        ];
        for (at, leaf) in leaves.iter().enumerate() {
            assert_eq!(&split_key(leaf.key().as_bytes()).expect("a key"), leaf);
            assert!(leaves[at + 1..].iter().all(|other| other.key() != leaf.key()), "{leaf:?}");
        }
        assert!(split_key(&[0x3C, b'p', 0, b'e', 0]).is_err());
        assert!(split_key(&[0x3C, 0, 0, 0]).is_err(), "a task without names is not in the tree");
    }

    #[test]
    fn a_report_shows_one_project_or_all() {
        let mut tree = Tree::default();
        for leaf in [leaf("a", "e1", "f1"), leaf("a", "e1", "f2"), leaf("a", "e2", "f1"), leaf("b", "", "")] {
            tree.change(&leaf, |counts| counts::add(counts, TaskStatus::Completed));
        }
        let shape = |report: Vec<ProjectProgress>| -> Vec<(String, usize, usize)> {
            let features =
                |project: &ProjectProgress| -> usize { project.epics.iter().map(|epic| epic.features.len()).sum() };
            report.iter().map(|project| (project.project.clone(), project.epics.len(), features(project))).collect()
        };
        assert_eq!(shape(tree.report("")), [("a".to_owned(), 2, 3), ("b".to_owned(), 1, 1)]);
        assert_eq!(shape(tree.report("a")), [("a".to_owned(), 2, 3)]);
        assert!(tree.report("c").is_empty());
    }
}
