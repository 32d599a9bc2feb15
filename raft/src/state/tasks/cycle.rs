//! Cycles: whether tasks wait for each other in a circle.
//!
//! Walks without recursion: how deep it goes is the graph's choice.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, PartialEq)]
enum Mark {
    /// On the path that is being walked.
    Open,
    Done,
}

/// A circle that can be reached from one of the starts, its first member repeated at the end; `waits_for` gives what
/// each task waits for.
pub(super) fn find<'a>(
    starts: impl Iterator<Item = &'a str>,
    waits_for: impl Fn(&str) -> Vec<String>,
) -> Option<Vec<String>> {
    find_all(starts, waits_for, 1).pop()
}

/// Circles that share no member, at most so many; what is left without them has none that the starts reach.
pub(super) fn find_all<'a>(
    starts: impl Iterator<Item = &'a str>,
    waits_for: impl Fn(&str) -> Vec<String>,
    most: usize,
) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut marks: BTreeMap<String, Mark> = BTreeMap::new();
    for start in starts {
        if marks.contains_key(start) {
            continue;
        }
        // With each task on the way, what it waits for and was not followed yet.
        let mut path: Vec<(String, std::vec::IntoIter<String>)> =
            vec![(start.to_owned(), waits_for(start).into_iter())];
        marks.insert(start.to_owned(), Mark::Open);
        while let Some((id, rest)) = path.last_mut() {
            let Some(next) = rest.next() else {
                marks.insert(std::mem::take(id), Mark::Done);
                path.pop();
                continue;
            };
            match marks.get(&next) {
                None => {
                    marks.insert(next.clone(), Mark::Open);
                    let further = waits_for(&next).into_iter();
                    path.push((next, further));
                }
                Some(Mark::Open) => {
                    let from = path.iter().position(|(id, _)| *id == next).unwrap_or_default();
                    found.push(circle(&path[from..], next));
                    if found.len() >= most {
                        return found;
                    }
                    // Its members are done with; what else they wait for is looked at from its own start.
                    marks.extend(path.drain(from..).map(|(id, _)| (id, Mark::Done)));
                }
                Some(Mark::Done) => {}
            }
        }
    }
    found
}

fn circle(path: &[(String, std::vec::IntoIter<String>)], end: String) -> Vec<String> {
    path.iter().map(|(id, _)| id.clone()).chain([end]).collect()
}

/// A way from what `start` waits for back to itself, with `start` at both ends.
pub(super) fn through(start: &str, waits_for: impl Fn(&str) -> Vec<String>) -> Option<Vec<String>> {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut path: Vec<(String, std::vec::IntoIter<String>)> = vec![(start.to_owned(), waits_for(start).into_iter())];
    while let Some((_, rest)) = path.last_mut() {
        match rest.next() {
            None => drop(path.pop()),
            Some(next) if next == start => return Some(circle(&path, next)),
            Some(next) => {
                if seen.insert(next.clone()) {
                    let further = waits_for(&next).into_iter();
                    path.push((next, further));
                }
            }
        }
    }
    None
}

/// A path for people: a long one is cut in the middle.
pub(super) fn shown(path: &[String]) -> String {
    const ENDS: usize = 30;
    if path.len() <= 2 * ENDS {
        return path.join(" -> ");
    }
    let (first, last) = (&path[..ENDS], &path[path.len() - ENDS..]);
    format!("{} -> ({} more) -> {}", first.join(" -> "), path.len() - 2 * ENDS, last.join(" -> "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(edges: &[(&str, &[&str])]) -> Option<String> {
        let waits_for = |id: &str| -> Vec<String> {
            let own = edges.iter().find(|(from, _)| *from == id).map_or(&[][..], |(_, to)| to);
            own.iter().map(|id| (*id).to_owned()).collect()
        };
        find(edges.iter().map(|(id, _)| *id), waits_for).map(|path| path.join(" -> "))
    }

    #[test]
    fn a_task_that_waits_for_itself_is_a_circle() {
        assert_eq!(found(&[("a", &["a"])]).as_deref(), Some("a -> a"));
    }

    #[test]
    fn the_path_leaves_out_what_only_leads_to_the_circle() {
        let edges: [(&str, &[&str]); 4] = [("a", &["b"]), ("b", &["c"]), ("c", &["d", "b"]), ("d", &[])];
        assert_eq!(found(&edges).as_deref(), Some("b -> c -> b"));
    }

    #[test]
    fn circles_are_found_in_one_walk_and_share_no_member() {
        // Two that share b, and one behind them that only a leads to.
        let edges: [(&str, &[&str]); 5] =
            [("a", &["b", "d"]), ("b", &["a", "c"]), ("c", &["b"]), ("d", &["e"]), ("e", &["d"])];
        let waits_for = |id: &str| -> Vec<String> {
            let own = edges.iter().find(|(from, _)| *from == id).map_or(&[][..], |(_, to)| to);
            own.iter().map(|id| (*id).to_owned()).collect()
        };
        let all = find_all(edges.iter().map(|(id, _)| *id), waits_for, 10);
        let all: Vec<String> = all.iter().map(|path| path.join(" -> ")).collect();
        assert_eq!(all, ["a -> b -> a", "d -> e -> d"]);
    }

    #[test]
    fn a_diamond_is_no_circle() {
        let edges: [(&str, &[&str]); 4] = [("a", &["b", "c"]), ("b", &["d"]), ("c", &["d"]), ("d", &["old"])];
        assert_eq!(found(&edges), None);
    }

    #[test]
    fn another_circle_on_the_way_hides_none_through_the_start() {
        let edges: [(&str, &[&str]); 4] = [("t", &["x", "u"]), ("x", &["y"]), ("y", &["x"]), ("u", &["t"])];
        let waits_for = |id: &str| -> Vec<String> {
            let own = edges.iter().find(|(from, _)| *from == id).map_or(&[][..], |(_, to)| to);
            own.iter().map(|id| (*id).to_owned()).collect()
        };
        assert_eq!(through("t", waits_for).map(|path| path.join(" -> ")).as_deref(), Some("t -> u -> t"));
        assert_eq!(through("x", waits_for).map(|path| path.len()), Some(3));
        assert_eq!(through("nobody", waits_for), None);
    }

    #[test]
    fn a_long_path_is_cut_in_the_middle() {
        let path: Vec<String> = (0..100).map(|i| i.to_string()).collect();
        let text = shown(&path);
        assert!(text.starts_with("0 -> 1 -> ") && text.contains("(40 more)") && text.ends_with("98 -> 99"), "{text}");
    }
}
