//! What must hold of consensus and of the replicas, whatever happens.
//!
//! | invariant | looked at |
//! |---|---|
//! | election safety: one leader a term | at every append and heartbeat on the wire, and in samples |
//! | log matching: index and term decide an entry and the term before it | at every append to any log |
//! | leader completeness: a new leader has every committed entry | when a term's leader is first sampled |
//! | what is committed never changes | at every apply |
//! | replicas are equal: digest, rev and time after every entry | at every apply and install |
//! | votes: one a term and node, none forgotten by a restart | at every vote, at every start |
//! | terms and applied indexes of a process never fall; time never does | in samples; at every apply |
//!
//! The names are those of the Raft paper (Ongaro and Ousterhout, 2014). That an acknowledged entry is on the disks of a
//! majority is checked where it is acknowledged (`propose`).

use std::collections::BTreeMap;

use quorate_raft::apply::Head;
use quorate_raft::consensus::types::{LogId, Vote};
use xxhash_rust::xxh3::xxh3_64;

use crate::disk::Image;

/// A hash of an entry's or an answer's stored form.
pub(crate) fn hash_of(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// Where a state stands after one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// The entry's place.
    pub(crate) id: LogId,
    /// Its hash.
    pub(crate) entry: u64,
    /// The running digest.
    pub(crate) digest: u128,
    /// The last command's ordinal.
    pub(crate) rev: u64,
    /// The cluster's time.
    pub(crate) now_ms: u64,
}

/// What a sample shows of one process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// Which node.
    pub(crate) node: u64,
    /// Which of its processes.
    pub(crate) epoch: u64,
    /// Its term.
    pub(crate) term: u64,
    /// Whether it leads.
    pub(crate) leads: bool,
    /// Up to where it has applied.
    pub(crate) applied: Option<u64>,
}

/// Everything seen so far.
#[derive(Debug, Default)]
pub(crate) struct Invariants {
    leaders: BTreeMap<u64, u64>,
    /// Terms whose leader was held against what is committed.
    complete: BTreeMap<u64, u64>,
    entries: BTreeMap<(u64, u64), (u64, Option<u64>)>,
    steps: BTreeMap<u64, Step>,
    candidates: BTreeMap<(u64, u64), u64>,
    votes: BTreeMap<u64, (u64, bool)>,
    terms: BTreeMap<(u64, u64), u64>,
    applied: BTreeMap<(u64, u64), u64>,
}

impl Invariants {
    /// A node speaks as the leader of a term. Says whether that term had none yet.
    pub(crate) fn leads(&mut self, term: u64, node: u64) -> Result<bool, String> {
        match self.leaders.insert(term, node) {
            None => Ok(true),
            Some(other) if other == node => Ok(false),
            Some(other) => Err(format!("election safety: nodes {other} and {node} both lead in term {term}")),
        }
    }

    /// An entry is appended to some log, after one of the term `previous`, as far as that is known.
    pub(crate) fn appended(&mut self, id: LogId, previous: Option<u64>, hash: u64) -> Result<(), String> {
        let (index, term) = (id.index, id.leader_id.term);
        let known = self.entries.entry((index, term)).or_insert((hash, previous));
        if known.0 != hash {
            return Err(format!("log matching: two entries at index {index} of term {term}"));
        }
        match (known.1, previous) {
            (Some(one), Some(other)) if one != other => Err(format!(
                "log matching: the entry at index {index} of term {term} follows one of term {one} and one of {other}"
            )),
            (None, Some(_)) => {
                known.1 = previous;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A vote was saved.
    pub(crate) fn voted(&mut self, node: u64, vote: &Vote) -> Result<(), String> {
        let (term, to) = (vote.leader_id.term, vote.leader_id.voted_for);
        let best = self.votes.entry(node).or_default();
        *best = (*best).max((term, vote.committed));
        if vote.committed {
            return Ok(());
        }
        match self.candidates.insert((node, term), to) {
            Some(other) if other != to => {
                Err(format!("node {node} votes for {to} in term {term}, and has voted for {other}"))
            }
            _ => Ok(()),
        }
    }

    /// A process starts with the vote that its disk has.
    pub(crate) fn started(&self, node: u64, vote: Option<&Vote>) -> Result<(), String> {
        let given = self.votes.get(&node).copied().unwrap_or_default();
        let found = vote.map_or((0, false), |vote| (vote.leader_id.term, vote.committed));
        if found < given {
            return Err(format!("node {node} has forgotten its vote: it gave {given:?} and finds {found:?}"));
        }
        Ok(())
    }

    /// A process has applied an entry. Says whether it is the first.
    pub(crate) fn applied(&mut self, node: u64, epoch: u64, step: &Step) -> Result<bool, String> {
        let index = step.id.index;
        if let Some(before) = self.applied.insert((node, epoch), index)
            && before + 1 != index
        {
            return Err(format!("node {node} applies entry {index} after entry {before}"));
        }
        if let Some(known) = self.steps.get(&index) {
            if (known.id, known.entry) != (step.id, step.entry) {
                let (one, other) = (known.id, step.id);
                return Err(format!("committed entries change: at {index} {one}, on node {node} {other}"));
            }
            if known != step {
                return Err(format!("replicas differ after entry {index}: {known:?}, on node {node} {step:?}"));
            }
            return Ok(false);
        }
        if let Some(before) = index.checked_sub(1).and_then(|before| self.steps.get(&before))
            && before.now_ms > step.now_ms
        {
            return Err(format!("time goes back at entry {index}: from {} to {}", before.now_ms, step.now_ms));
        }
        self.steps.insert(index, *step);
        Ok(true)
    }

    /// A process has put a snapshot in force.
    pub(crate) fn installed(&mut self, node: u64, epoch: u64, head: &Head) -> Result<(), String> {
        let Some((_, index)) = head.applied else { return Err(format!("node {node} installs nothing")) };
        self.applied.insert((node, epoch), index);
        let Some(known) = self.steps.get(&index) else {
            return Err(format!("node {node} installs a snapshot of entry {index}, which nobody has applied"));
        };
        if (known.digest, known.rev, known.now_ms) != (head.digest, head.rev, head.now_ms) {
            return Err(format!("replicas differ at entry {index}: {known:?}, installed on node {node} {head:?}"));
        }
        Ok(())
    }

    /// Looks at a process from outside; `log` is its own.
    pub(crate) fn sampled(&mut self, sample: &Sample, log: &Image) -> Result<(), String> {
        let Sample { node, epoch, term, leads, applied } = *sample;
        let highest = self.terms.entry((node, epoch)).or_default();
        if term < *highest {
            return Err(format!("the term of node {node} falls from {highest} to {term}"));
        }
        *highest = term;
        if let (Some(applied), Some(known)) = (applied, self.applied.get(&(node, epoch)))
            && applied > *known
        {
            return Err(format!("node {node} says that it has applied {applied}, and has applied {known}"));
        }
        if leads {
            self.leads(term, node)?;
            self.check_complete(node, term, log)?;
        }
        Ok(())
    }

    /// While no later term has had a leader, whatever is committed was so before this term or in it.
    fn check_complete(&mut self, node: u64, term: u64, log: &Image) -> Result<(), String> {
        let is_newest = self.leaders.last_key_value().is_some_and(|(newest, _)| *newest == term);
        if !is_newest || self.complete.insert(term, node).is_some() {
            return Ok(());
        }
        let first = log.purged.map_or(0, |id| id.index.saturating_add(1));
        for (index, step) in self.steps.range(first..) {
            if log.log.get(index).is_none_or(|entry| entry.id != step.id) {
                return Err(format!("leader completeness: node {node} leads in term {term} without entry {}", step.id));
            }
        }
        Ok(())
    }

    /// How many terms have had a leader.
    pub(crate) fn elections(&self) -> u64 {
        self.leaders.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Stored;

    fn at(term: u64, index: u64) -> LogId {
        LogId::new_term_index(term, index)
    }

    fn step(term: u64, index: u64, digest: u128) -> Step {
        Step { id: at(term, index), entry: index, digest, rev: index, now_ms: 10 }
    }

    #[test]
    fn two_leaders_of_a_term_are_seen() {
        let mut seen = Invariants::default();
        assert_eq!((seen.leads(1, 1), seen.leads(1, 1), seen.leads(2, 2)), (Ok(true), Ok(false), Ok(true)));
        assert!(seen.leads(1, 2).is_err());
    }

    #[test]
    fn logs_that_do_not_match_are_seen() {
        let mut seen = Invariants::default();
        seen.appended(at(2, 5), None, 7).unwrap();
        seen.appended(at(2, 5), Some(1), 7).unwrap();
        assert!(seen.appended(at(2, 5), Some(1), 8).is_err(), "another entry");
        assert!(seen.appended(at(2, 5), Some(2), 7).is_err(), "another entry before it");
    }

    #[test]
    fn what_is_committed_stays_and_gives_the_same_everywhere() {
        let mut seen = Invariants::default();
        assert_eq!(seen.applied(1, 0, &step(1, 1, 5)), Ok(true));
        assert_eq!(seen.applied(2, 0, &step(1, 1, 5)), Ok(false));
        assert!(seen.applied(3, 0, &step(1, 1, 6)).is_err(), "another digest");
        assert!(seen.applied(4, 0, &step(2, 1, 5)).is_err(), "another entry");
        let earlier = Step { now_ms: 9, ..step(1, 2, 5) };
        assert!(seen.applied(1, 0, &earlier).is_err(), "time goes back");
    }

    #[test]
    fn second_and_forgotten_votes_are_seen() {
        let mut seen = Invariants::default();
        seen.voted(1, &Vote::new(3, 1)).unwrap();
        seen.voted(1, &Vote::new_committed(3, 2)).unwrap();
        assert!(seen.voted(1, &Vote::new(3, 2)).is_err());
        assert!(seen.started(1, None).is_err() && seen.started(1, Some(&Vote::new(2, 1))).is_err());
        seen.started(1, Some(&Vote::new_committed(3, 2))).unwrap();
        seen.started(2, None).unwrap();
    }

    #[test]
    fn an_incomplete_leader_is_seen() {
        let mut seen = Invariants::default();
        seen.applied(1, 0, &step(1, 1, 5)).unwrap();
        let sample = Sample { node: 2, epoch: 0, term: 2, leads: true, applied: None };
        assert!(seen.sampled(&sample, &Image::default()).is_err());
        let mut log = Image::default();
        log.log.insert(1, Stored { id: at(1, 1), bytes: bytes::Bytes::new() });
        seen.sampled(&Sample { term: 3, ..sample }, &log).unwrap();
        assert!(seen.sampled(&sample, &log).is_err(), "its term falls");
    }
}
