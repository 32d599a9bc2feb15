//! Subjects, patterns, and the tree that finds the subscriptions of a subject.
//!
//! The tree has a node for each beginning of a pattern, so a match walks along the tokens of the subject: at each of
//! them the node of the token itself, and the node of `*`. What it costs depends on the patterns that begin like the
//! subject, never on how many others there are. Where tokens and `*` stand side by side at every level, there are
//! twice as many ways at each; so whoever asks says how many nodes may be looked at.
//!
//! Invariant: no node is empty but the root, so a tree equals the one rebuilt from the patterns that are left.

use std::collections::{BTreeMap, BTreeSet};
use std::str::Split;
use std::sync::Arc;

use crate::error::{Outcome, invalid};

/// The longest subject or pattern.
pub const MAX_SUBJECT_BYTES: usize = 255;
/// The most tokens in one.
pub const MAX_TOKENS: usize = 16;

/// Any one token. No subject has it as a token, so in the tree it stands beside the others.
const ANY: &str = "*";
/// One or more tokens, at the end.
const REST: &str = ">";

/// Checks what a message is published under.
pub fn check_subject(field: &str, subject: &str) -> Outcome<()> {
    if has_shape(subject) && subject.split('.').all(is_token) {
        return Ok(());
    }
    let what = format!("at most {MAX_TOKENS} tokens of letters, digits, _ and -, divided by dots");
    Err(invalid(field, format!("{field} must be 1 to {MAX_SUBJECT_BYTES} bytes, {what}; got {subject:?}")))
}

/// Checks what a subscription asks for.
pub fn check_pattern(field: &str, pattern: &str) -> Outcome<()> {
    let tokens = pattern.strip_suffix(REST).map_or(Some(pattern), |front| front.strip_suffix('.'));
    let fits = match tokens {
        Some(tokens) => tokens.split('.').all(|token| token == ANY || is_token(token)),
        // What is left of a lone ">".
        None => pattern == REST,
    };
    if fits && has_shape(pattern) {
        return Ok(());
    }
    let what = "a subject in which a token may be * and the last one may be >";
    Err(invalid(field, format!("{field} must be {what}, 1 to {MAX_SUBJECT_BYTES} bytes; got {pattern:?}")))
}

/// An id as a token of a subject: what a token may not hold becomes `_`.
pub fn token_of(id: &str) -> String {
    id.chars().map(|c| if fits_token(c) { c } else { '_' }).collect()
}

fn has_shape(text: &str) -> bool {
    (1..=MAX_SUBJECT_BYTES).contains(&text.len()) && text.split('.').count() <= MAX_TOKENS
}

fn is_token(token: &str) -> bool {
    !token.is_empty() && token.chars().all(fits_token)
}

fn fits_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

/// The patterns of all subscriptions.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Patterns {
    root: Node,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Node {
    next: BTreeMap<Box<str>, Node>,
    /// Subscriptions with a pattern that ends here.
    ends: BTreeSet<Arc<str>>,
    /// Subscriptions with a pattern whose last token, `>`, stands here.
    rest: BTreeSet<Arc<str>>,
}

impl Node {
    fn is_empty(&self) -> bool {
        self.next.is_empty() && self.ends.is_empty() && self.rest.is_empty()
    }
}

impl Patterns {
    /// A subscription asks for what matches this pattern.
    pub(super) fn insert(&mut self, pattern: &str, name: &Arc<str>) {
        let mut node = &mut self.root;
        for token in pattern.split('.') {
            if token == REST {
                node.rest.insert(Arc::clone(name));
                return;
            }
            node = node.next.entry(Box::from(token)).or_default();
        }
        node.ends.insert(Arc::clone(name));
    }

    /// It no longer does.
    pub(super) fn remove(&mut self, pattern: &str, name: &str) {
        take_out(&mut self.root, &mut pattern.split('.'), name);
    }

    /// The subscriptions that the subject matches, by name; of more than `most`, `most` and one. Looks at no more than
    /// `visits` nodes, and takes away those that it looked at; `None`: that was too few.
    pub(super) fn find(&self, subject: &str, most: usize, visits: &mut usize) -> Option<BTreeSet<Arc<str>>> {
        let tokens: Vec<&str> = subject.split('.').collect();
        let mut found = BTreeSet::new();
        gather(&self.root, &tokens, most, visits, &mut found).then_some(found)
    }
}

fn take_out(node: &mut Node, tokens: &mut Split<'_, char>, name: &str) {
    match tokens.next() {
        None => {
            node.ends.remove(name);
        }
        Some(REST) => {
            node.rest.remove(name);
        }
        Some(token) => {
            let Some(next) = node.next.get_mut(token) else { return };
            take_out(next, tokens, name);
            if next.is_empty() {
                node.next.remove(token);
            }
        }
    }
}

/// Tells whether the visits were enough.
fn gather(node: &Node, tokens: &[&str], most: usize, visits: &mut usize, found: &mut BTreeSet<Arc<str>>) -> bool {
    let Some(visits_left) = visits.checked_sub(1) else { return false };
    *visits = visits_left;
    let Some((token, left)) = tokens.split_first() else {
        add(&node.ends, most, found);
        return true;
    };
    add(&node.rest, most, found);
    for key in [*token, ANY] {
        if let Some(next) = node.next.get(key)
            && !gather(next, left, most, visits, found)
        {
            return false;
        }
    }
    true
}

fn add(names: &BTreeSet<Arc<str>>, most: usize, found: &mut BTreeSet<Arc<str>>) {
    for name in names {
        if found.len() > most {
            return;
        }
        found.insert(Arc::clone(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(patterns: &[&str], subject: &str) -> Vec<String> {
        let mut tree = Patterns::default();
        for pattern in patterns {
            check_pattern("pattern", pattern).expect("a good pattern");
            tree.insert(pattern, &Arc::from(*pattern));
        }
        find(&tree, subject, 100).iter().map(ToString::to_string).collect()
    }

    fn find(tree: &Patterns, subject: &str, most: usize) -> BTreeSet<Arc<str>> {
        tree.find(subject, most, &mut 1_000).expect("few nodes")
    }

    #[test]
    fn which_pattern_matches_which_subject() {
        let table = [
            ("a", "a", true),
            ("a", "b", false),
            ("a", "a.b", false),
            ("a.b", "a", false),
            ("agent.a1.tasks", "agent.a1.tasks", true),
            ("*", "a", true),
            ("*", "a.b", false),
            ("a.*", "a", false),
            ("a.*", "a.b", true),
            ("a.*", "a.b.c", false),
            ("*.b", "a.b", true),
            ("*.b", "b", false),
            ("*.*", "a.b", true),
            ("agent.*.tasks", "agent.a1.tasks", true),
            ("agent.*.tasks", "agent.a1.responses", false),
            ("agent.*.tasks", "agent.tasks", false),
            (">", "a", true),
            (">", "a.b.c", true),
            ("a.>", "a", false),
            ("a.>", "a.b", true),
            ("a.>", "a.b.c.d", true),
            ("a.>", "b.a", false),
            ("*.>", "a", false),
            ("*.>", "a.b", true),
            ("a.*.>", "a.b", false),
            ("a.*.>", "a.b.c", true),
            ("slack.events.command.*", "slack.events.command.deploy", true),
            ("slack.events.command.*", "slack.events.message", false),
            ("slack.events.>", "slack.events.command.deploy", true),
        ];
        for (pattern, subject, matches) in table {
            let expected: &[&str] = if matches { &[pattern] } else { &[] };
            assert_eq!(found(&[pattern], subject), expected, "{pattern} and {subject}");
        }
    }

    #[test]
    fn every_matching_pattern_is_found_once() {
        let patterns = ["a.b", "a.*", "*.b", "*.*", "a.>", ">", "a.c", "b.*", "a.b.c"];
        assert_eq!(found(&patterns, "a.b"), ["*.*", "*.b", ">", "a.*", "a.>", "a.b"]);
        let mut tree = Patterns::default();
        let name = Arc::from("s");
        patterns.iter().for_each(|pattern| tree.insert(pattern, &name));
        assert_eq!(find(&tree, "a.b", 100).len(), 1, "a subscription gets a message once, however often it matches");
    }

    #[test]
    fn of_too_many_matches_one_too_many_is_found() {
        let mut tree = Patterns::default();
        (0..9).for_each(|i| tree.insert("a.>", &Arc::from(format!("s{i}"))));
        assert_eq!(find(&tree, "a.b", 4).len(), 5);
        assert_eq!(find(&tree, "a.b", 9).len(), 9);
    }

    #[test]
    fn a_tree_with_too_many_ways_is_not_gone_through() {
        let mut tree = Patterns::default();
        // A token or * at each of eight levels: 256 patterns, in a full binary tree of 511 nodes.
        for ways in 0..256_u32 {
            let tokens: Vec<&str> = (0..8).map(|level| if (ways >> level) & 1 == 1 { "a" } else { ANY }).collect();
            tree.insert(&tokens.join("."), &Arc::from(format!("s{ways}")));
        }
        let subject = ["a"; 8].join(".");
        let mut visits = 511;
        assert_eq!(tree.find(&subject, 1_000, &mut visits).map(|found| found.len()), Some(256));
        assert_eq!((visits, tree.find(&subject, 1_000, &mut 510)), (0, None));
        // Another subject takes the way of the * alone.
        let mut visits = 9;
        let other = ["b"; 8].join(".");
        assert_eq!(tree.find(&other, 1_000, &mut visits).map(|found| found.len()), Some(1));
        assert_eq!((visits, tree.find("b", 1_000, &mut visits)), (0, None));
    }

    #[test]
    fn what_was_removed_leaves_nothing_behind() {
        let mut tree = Patterns::default();
        let (one, two) = (Arc::from("one"), Arc::from("two"));
        for pattern in ["a.b.c", "a.*.>", ">", "a.b"] {
            tree.insert(pattern, &one);
        }
        tree.insert("a.b", &two);
        for pattern in ["a.b.c", "a.*.>", ">", "a.b"] {
            tree.remove(pattern, "one");
        }
        assert_eq!(find(&tree, "a.b", 9).iter().map(|name| &**name).collect::<Vec<&str>>(), ["two"]);
        tree.remove("a.b", "two");
        assert_eq!(tree, Patterns::default());
    }

    #[test]
    fn malformed_subjects_and_patterns_are_refused() {
        let deep = |n: usize| vec!["t"; n].join(".");
        let good = ["a", "A-1_b", "a.b", &deep(MAX_TOKENS), &"x".repeat(MAX_SUBJECT_BYTES)].map(str::to_owned);
        for subject in &good {
            assert!(check_subject("s", subject).is_ok() && check_pattern("s", subject).is_ok(), "{subject}");
        }
        let bad = ["", ".", "a.", ".a", "a..b", "a b", "a:b", "ä", "a/b", &deep(MAX_TOKENS + 1), &"x".repeat(256)];
        for text in bad {
            assert!(check_subject("s", text).is_err() && check_pattern("s", text).is_err(), "{text}");
        }
        for pattern in ["*", ">", "a.*", "*.a", "a.*.b", "a.>", "*.>", "*.*.>"] {
            assert!(check_pattern("s", pattern).is_ok() && check_subject("s", pattern).is_err(), "{pattern}");
        }
        for pattern in ["a*", "*a", "a.b*", "**", ">.a", "a.>.b", "a>", "a.b>", ">>", ".>", "a..>", "a.>.", "*>"] {
            assert!(check_pattern("s", pattern).is_err(), "{pattern}");
        }
        assert!(check_pattern("s", &format!("{}.>", deep(MAX_TOKENS))).is_err(), "17 tokens");
    }

    #[test]
    fn an_id_becomes_one_token() {
        assert_eq!(token_of("team/a1:blue.x"), "team_a1_blue_x");
        assert!(check_subject("s", &token_of("a@b")).is_ok());
    }
}
