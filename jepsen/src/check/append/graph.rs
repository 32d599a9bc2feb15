//! Which transaction must come before which, and why.
//!
//! | edge | because |
//! |---|---|
//! | `ww` | one appended to a list before the other did |
//! | `wr` | one read what the other had appended |
//! | `rw` | one read a list without what the other appended |
//! | real time | one had ended before the other began |
//!
//! Of each relation only neighbours are joined: what follows from a chain of edges has no edge of its own. For real
//! time that is the frontier: a transaction is joined to those that had ended when it began, but for those before them.
//!
//! Deliberately absent: cycles. See [`super::cycles`].

use std::collections::HashMap;

use super::lists::{Item, List, Lists};
use super::transaction::{Read, Transaction};

/// Why one comes before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why<'a> {
    /// The other appended this value to this key later.
    WriteWrite(&'a str, &'a str),
    /// The other read this value in this key.
    WriteRead(&'a str, &'a str),
    /// It read this key without this value, which the other appended.
    ReadWrite(&'a str, &'a str),
    /// It had ended before the other began.
    Time,
}

/// From one transaction to another, meant by their place among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge<'a> {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) why: Why<'a>,
}

/// All edges, by where they begin.
#[derive(Clone, Debug)]
pub(super) struct Graph<'a> {
    pub(super) edges: Vec<Vec<Edge<'a>>>,
}

impl<'a> Graph<'a> {
    /// What the reads and the times say.
    pub(super) fn of(transactions: &[Transaction<'_>], lists: &Lists<'a>) -> Self {
        let mut graph = Self { edges: vec![Vec::new(); transactions.len()] };
        for (key, list) in lists.iter() {
            graph.add_appends(key, list, lists);
        }
        for (by, transaction) in transactions.iter().enumerate() {
            for read in transaction.reads() {
                graph.add_read(by, &read, lists);
            }
        }
        graph.add_time(transactions, lists);
        graph
    }

    /// The part of it that joins some of the nodes by some of the edges; nodes are numbered anew, as in the list.
    pub(super) fn part(&self, nodes: &[usize], is_wanted: impl Fn(Why<'a>) -> bool) -> Self {
        let new: HashMap<usize, usize> = nodes.iter().enumerate().map(|(new, old)| (*old, new)).collect();
        let renamed = |edge: &Edge<'a>| {
            let (from, to) = (*new.get(&edge.from)?, *new.get(&edge.to)?);
            is_wanted(edge.why).then_some(Edge { from, to, why: edge.why })
        };
        let of_node = |node: &usize| self.edges[*node].iter().filter_map(&renamed).collect();
        Self { edges: nodes.iter().map(of_node).collect() }
    }

    fn add(&mut self, from: usize, to: usize, why: Why<'a>) {
        if from != to {
            self.edges[from].push(Edge { from, to, why });
        }
    }

    fn add_appends(&mut self, key: &'a str, list: &List<'a>, lists: &Lists<'a>) {
        let did = |item: &Item<'_>| lists.counts(item.by);
        let order: Vec<Item<'a>> = (0..list.len()).filter_map(|at| list.item(at)).filter(did).collect();
        for pair in order.windows(2) {
            if let [earlier, later] = pair {
                self.add(earlier.by, later.by, Why::WriteWrite(key, later.value));
            }
        }
        let Some(last) = order.last() else { return };
        for later in &list.unread {
            self.add(last.by, later.by, Why::WriteWrite(key, later.value));
        }
    }

    fn add_read(&mut self, by: usize, read: &Read<'_>, lists: &Lists<'a>) {
        let Some((key, list)) = lists.get(read.key) else { return };
        let Some(place) = list.place(read) else { return };
        let last = place.checked_sub(1).and_then(|last| list.item(last));
        if let Some(item) = last.filter(|item| lists.counts(item.by)) {
            self.add(item.by, by, Why::WriteRead(key, item.value));
        }
        // What nobody can have appended is passed over.
        let mut rest = (place..list.len()).filter_map(|at| list.item(at));
        if let Some(item) = rest.find(|item| lists.counts(item.by)) {
            self.add(by, item.by, Why::ReadWrite(key, item.value));
            return;
        }
        for item in &list.unread {
            self.add(by, item.by, Why::ReadWrite(key, item.value));
        }
    }

    fn add_time(&mut self, transactions: &[Transaction<'_>], lists: &Lists<'a>) {
        let mut moments: Vec<(usize, usize, bool)> = Vec::new();
        for (by, transaction) in transactions.iter().enumerate().filter(|(by, _)| lists.counts(*by)) {
            moments.push((transaction.operation.began_at, by, false));
            if transaction.is_answered() {
                moments.push((transaction.operation.ended_at, by, true));
            }
        }
        moments.sort_unstable();
        // Those that ended, but for those that had ended when one of these began.
        let mut frontier: Vec<usize> = Vec::new();
        let mut at_beginning: HashMap<usize, Vec<usize>> = HashMap::new();
        for (_, by, is_end) in moments {
            if is_end {
                let before = at_beginning.remove(&by).unwrap_or_default();
                frontier.retain(|earlier| !before.contains(earlier));
                frontier.push(by);
                continue;
            }
            for earlier in &frontier {
                self.add(*earlier, by, Why::Time);
            }
            at_beginning.insert(by, frontier.clone());
        }
    }
}
