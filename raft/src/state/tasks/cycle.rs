//! Cycles: whether tasks of one request wait for each other in a circle.
//!
//! A task may only wait for tasks that exist or come in its own request, so a new circle lies within the request.

use std::collections::BTreeMap;

/// The way from a start to here; with each task, what it waits for and was not followed yet.
type Path<'a> = Vec<(&'a str, std::slice::Iter<'a, String>)>;

#[derive(Clone, Copy, PartialEq)]
enum Mark {
    New,
    /// On the path that is being walked.
    Open,
    Done,
}

/// A circle, its first member repeated at the end; `edges` gives what each waits for. Ids outside it are no edge.
///
/// Walks without recursion: how deep it goes is the request's choice.
pub(super) fn find(edges: &BTreeMap<&str, &[String]>) -> Option<Vec<String>> {
    let mut marks: BTreeMap<&str, Mark> = edges.keys().map(|id| (*id, Mark::New)).collect();
    for start in edges.keys().copied() {
        if marks.get(start) != Some(&Mark::New) {
            continue;
        }
        let mut path: Path<'_> = Vec::new();
        enter(start, edges, &mut marks, &mut path);
        while let Some((id, rest)) = path.last_mut() {
            let Some(next) = rest.next() else {
                marks.insert(*id, Mark::Done);
                path.pop();
                continue;
            };
            match marks.get(next.as_str()) {
                Some(Mark::New) => enter(next, edges, &mut marks, &mut path),
                Some(Mark::Open) => return Some(circle(&path, next)),
                Some(Mark::Done) | None => {}
            }
        }
    }
    None
}

fn enter<'a>(
    id: &'a str,
    edges: &BTreeMap<&'a str, &'a [String]>,
    marks: &mut BTreeMap<&'a str, Mark>,
    path: &mut Path<'a>,
) {
    marks.insert(id, Mark::Open);
    path.push((id, edges.get(id).copied().unwrap_or_default().iter()));
}

fn circle(path: &[(&str, std::slice::Iter<'_, String>)], end: &str) -> Vec<String> {
    let from = path.iter().position(|(id, _)| *id == end).unwrap_or_default();
    path[from..].iter().map(|(id, _)| (*id).to_owned()).chain([end.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(edges: &[(&str, &[&str])]) -> Option<String> {
        let owned: BTreeMap<&str, Vec<String>> =
            edges.iter().map(|(id, to)| (*id, to.iter().map(|id| (*id).to_owned()).collect())).collect();
        let borrowed = owned.iter().map(|(id, to)| (*id, to.as_slice())).collect();
        find(&borrowed).map(|path| path.join(" -> "))
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
