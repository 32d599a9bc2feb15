//! Cycles: whether tasks wait for each other in a circle.
//!
//! Walks without recursion: how deep it goes is the graph's choice.

use std::collections::BTreeMap;

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
                Some(Mark::Open) => return Some(circle(&path, next)),
                Some(Mark::Done) => {}
            }
        }
    }
    None
}

fn circle(path: &[(String, std::vec::IntoIter<String>)], end: String) -> Vec<String> {
    let from = path.iter().position(|(id, _)| *id == end).unwrap_or_default();
    path[from..].iter().map(|(id, _)| id.clone()).chain([end.clone()]).collect()
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
    fn a_diamond_is_no_circle() {
        let edges: [(&str, &[&str]); 4] = [("a", &["b", "c"]), ("b", &["d"]), ("c", &["d"]), ("d", &["old"])];
        assert_eq!(found(&edges), None);
    }
}
