//! What a change of members takes, from the cluster as it is: pure, so that every place where one can be cut off is a
//! test.
//!
//! Deliberately absent: the doing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use quorate_proto::v1::change_members_request::Change as Asked;
use quorate_proto::v1::{ChangeMembersRequest, MemberAddress};
use quorate_raft::error::{Error, invalid, not_found, precondition};

/// More voters make every write slower and outlive no more than three losses in practice.
const MAX_VOTERS: usize = 7;
/// A node that lacks no more than this gets the rest while it votes.
pub(super) const NEARLY: u64 = 1_000;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Add { node_id: u64, address: String },
    Remove { node_id: u64 },
    Replace { old: u64, node_id: u64, address: String },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Add { node_id, address } => write!(f, "add node {node_id} at {address}"),
            Change::Remove { node_id } => write!(f, "remove node {node_id}"),
            Change::Replace { old, node_id, address } => write!(f, "replace node {old} by node {node_id} at {address}"),
        }
    }
}

impl Change {
    /// The node that it is about: the new one, if there is one.
    pub(crate) fn node_id(&self) -> u64 {
        match self {
            Change::Add { node_id, .. } | Change::Remove { node_id } | Change::Replace { node_id, .. } => *node_id,
        }
    }

    /// The node that is to be a voter.
    pub(crate) fn newcomer(&self) -> Option<(u64, &str)> {
        match self {
            Change::Add { node_id, address } | Change::Replace { node_id, address, .. } => {
                Some((*node_id, address.as_str()))
            }
            Change::Remove { .. } => None,
        }
    }

    fn leaver(&self) -> Option<u64> {
        match self {
            Change::Remove { node_id } => Some(*node_id),
            Change::Replace { old, .. } => Some(*old),
            Change::Add { .. } => None,
        }
    }

    /// Who votes when it is done.
    pub(crate) fn voters_after(&self, voters: &BTreeSet<u64>) -> BTreeSet<u64> {
        let newcomer = self.newcomer().map(|(node_id, _)| node_id);
        voters.iter().copied().filter(|id| Some(*id) != self.leaver()).chain(newcomer).collect()
    }
}

/// Reads a request; complaints name the field.
pub(crate) fn change_of(request: ChangeMembersRequest) -> Result<Change, Error> {
    let change = match request.change {
        Some(Asked::Add(MemberAddress { node_id, address, .. })) => Change::Add { node_id, address },
        Some(Asked::RemoveNodeId(node_id)) => Change::Remove { node_id },
        Some(Asked::Replace(replace)) => {
            let MemberAddress { node_id, address, .. } = replace.new_member.unwrap_or_default();
            Change::Replace { old: replace.old_node_id, node_id, address }
        }
        None => return Err(invalid("change", "change must be one of add, remove_node_id, replace")),
    };
    if change.node_id() == 0 || change.leaver() == Some(0) {
        return Err(invalid("node_id", "node_id must be 1 or more; 0 means \"no node\""));
    }
    if change.leaver() == change.newcomer().map(|(node_id, _)| node_id) {
        return Err(invalid("replace", "a node is replaced by one of another number: numbers are never used again"));
    }
    match change.newcomer() {
        Some((_, address)) if !is_host_port(address) => {
            Err(invalid("address", format!("address must be HOST:PORT, where the others reach it; got {address:?}")))
        }
        _ => Ok(change),
    }
}

fn is_host_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| {
        let host_fits = !host.is_empty() && !host.contains('/') && !host.contains(char::is_whitespace);
        host_fits && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

/// The cluster as its leader knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Roster {
    pub(crate) leader: u64,
    pub(crate) voters: BTreeSet<u64>,
    /// Voters and learners, with their addresses.
    pub(crate) nodes: BTreeMap<u64, String>,
    pub(crate) retired: BTreeSet<u64>,
    pub(crate) level: u32,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// It receives the log, without a vote.
    Learn {
        node_id: u64,
        address: String,
    },
    CatchUp {
        node_id: u64,
    },
    /// Another voter leads, and goes on with what is left.
    HandOver,
    /// Its number is never used again.
    Retire {
        node_id: u64,
    },
    /// These vote, and nobody else; it is about `node_id`.
    Voters {
        node_id: u64,
        voters: BTreeSet<u64>,
    },
    /// Consensus knows nothing of it any more.
    Forget {
        node_id: u64,
    },
}

/// What is left to do; nothing, if the change is done.
pub(crate) fn plan(roster: &Roster, change: &Change) -> Result<Vec<Step>, Error> {
    check(roster, change)?;
    let mut steps = Vec::new();
    let target = change.voters_after(&roster.voters);
    let leads_and_leaves = change.leaver() == Some(roster.leader) && roster.voters.contains(&roster.leader);
    if leads_and_leaves && roster.voters.len() > 1 {
        return Ok(vec![Step::HandOver]);
    }
    if let Some((node_id, address)) = change.newcomer()
        && !roster.voters.contains(&node_id)
    {
        if !roster.nodes.contains_key(&node_id) {
            steps.push(Step::Learn { node_id, address: address.to_owned() });
        }
        steps.push(Step::CatchUp { node_id });
        if leads_and_leaves {
            // There is nobody to hand over to before it votes.
            let voters = roster.voters.iter().copied().chain([node_id]).collect();
            steps.extend([Step::Voters { node_id, voters }, Step::HandOver]);
            return Ok(steps);
        }
    }
    if let Some(old) = change.leaver()
        && !roster.retired.contains(&old)
    {
        steps.push(Step::Retire { node_id: old });
    }
    if target != roster.voters {
        steps.push(Step::Voters { node_id: change.node_id(), voters: target });
    }
    if let Some(old) = change.leaver()
        && roster.nodes.contains_key(&old)
    {
        steps.push(Step::Forget { node_id: old });
    }
    Ok(steps)
}

fn check(roster: &Roster, change: &Change) -> Result<(), Error> {
    if let Some((node_id, address)) = change.newcomer() {
        check_newcomer(roster, node_id, address)?;
    }
    if let Some(old) = change.leaver()
        && !roster.nodes.contains_key(&old)
        && !roster.retired.contains(&old)
    {
        let members: BTreeSet<u64> = roster.nodes.keys().copied().collect();
        let message = format!("node {old} is not a member of this cluster; members are {}", numbers(&members));
        return Err(not_found("node_id", message));
    }
    let target = change.voters_after(&roster.voters);
    if target.is_empty() {
        let message = "it is the only voter: without it there is no cluster; add another node first";
        return Err(precondition("node_id", message));
    }
    if target.len() > MAX_VOTERS && target.len() > roster.voters.len() {
        let message = format!("a cluster has at most {MAX_VOTERS} voters; remove or replace one instead");
        return Err(precondition("node_id", message));
    }
    Ok(())
}

fn check_newcomer(roster: &Roster, node_id: u64, address: &str) -> Result<(), Error> {
    if roster.retired.contains(&node_id) {
        let message = format!(
            "node {node_id} was removed, and its number is never used again; `quorate cluster join` gives a free one"
        );
        return Err(precondition("node_id", message));
    }
    if let Some(known) = roster.nodes.get(&node_id)
        && known != address
    {
        let message = format!(
            "node {node_id} is a member already, at {known}; `quorate cluster join` gives a number that is free"
        );
        return Err(precondition("node_id", message));
    }
    match roster.nodes.iter().find(|(id, known)| *known == address && **id != node_id) {
        Some((other, _)) => {
            Err(precondition("address", format!("{address} is node {other}'s; each node has an address of its own")))
        }
        None => Ok(()),
    }
}

/// Who of these voters is silent, if those present are no majority.
pub(super) fn silent_majority(voters: &BTreeSet<u64>, present: &BTreeSet<u64>) -> Option<BTreeSet<u64>> {
    let there = voters.intersection(present).count();
    (there * 2 <= voters.len()).then(|| voters.difference(present).copied().collect())
}

/// `1, 2 and 3`
pub(super) fn numbers(ids: &BTreeSet<u64>) -> String {
    let mut texts: Vec<String> = ids.iter().map(u64::to_string).collect();
    match texts.pop() {
        Some(last) if texts.is_empty() => last,
        Some(last) => format!("{} and {last}", texts.join(", ")),
        None => "none".to_owned(),
    }
}

/// `node 2 does`, `nodes 2 and 3 do`: before "not answer".
pub(super) fn do_not(ids: &BTreeSet<u64>) -> String {
    let (noun, verb) = if ids.len() == 1 { ("node", "does") } else { ("nodes", "do") };
    format!("{noun} {} {verb}", numbers(ids))
}

/// How far a node is that receives the log.
#[derive(Debug)]
pub(super) struct Catching {
    /// What the leader had when it began. Under load the log grows while the node reads it.
    goal: u64,
    matched: Option<u64>,
    moved_at: Instant,
}

/// What a look brings.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    CaughtUp,
    /// It lacks so many entries, and has lacked them for so long.
    Behind {
        entries: u64,
        still_for: Duration,
    },
}

impl Catching {
    pub(super) fn begin(goal: u64, now: Instant) -> Self {
        Catching { goal, matched: None, moved_at: now }
    }

    /// `last` is the leader's newest entry, `matched` the newest that the node has acknowledged.
    pub(super) fn look(&mut self, last: u64, matched: Option<u64>, now: Instant) -> Progress {
        let moves = matched > self.matched;
        if matched != self.matched {
            self.matched = matched;
            self.moved_at = now;
        }
        let entries = last.saturating_sub(matched.unwrap_or(0));
        match matched {
            Some(matched) if entries <= NEARLY || (matched >= self.goal && moves) => Progress::CaughtUp,
            _ => Progress::Behind { entries, still_for: now.saturating_duration_since(self.moved_at) },
        }
    }
}

#[cfg(test)]
mod tests;
