//! How the other members are: each is asked every second, and what it said last is kept here.
//!
//! Whoever decides something that depends on more than this node looks here: whether a majority has room on its disks, whether
//! another would lead better, which commands everybody understands, and whether this replica is still one: it compares the
//! running digest of its state with the others', and stops if a majority of them disagree with it. It stops as well once the
//! others count it no more: the entry that drops a member is not sent to that member.
//!
//! Deliberately absent: who leads and who lives. That is for consensus to say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use openraft::Instant as _;
use parking_lot::Mutex;
use quorate_proto::peer as pb;
use quorate_raft::level;

use crate::core::Core;
use crate::stop::Reason;

/// Between two rounds, and how long an answer may take.
const ROUND: Duration = Duration::from_secs(1);
/// What was said longer ago than this says nothing about now.
const FRESH: Duration = Duration::from_secs(3);

/// What a member said, and when.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) at: Instant,
    pub(crate) reply: pb::HealthReply,
}

impl Heard {
    /// Whether it was said lately enough to be acted on.
    pub(crate) fn is_fresh(&self) -> bool {
        self.at.elapsed() < FRESH
    }
}

/// What every other member said last.
#[derive(Default)]
pub(crate) struct Neighbours {
    heard: Mutex<BTreeMap<u64, Heard>>,
}

impl Neighbours {
    /// What this member said last.
    pub(crate) fn health(&self, node_id: u64) -> Option<Heard> {
        self.heard.lock().get(&node_id).cloned()
    }

    /// What each has said last.
    pub(crate) fn all(&self) -> BTreeMap<u64, Heard> {
        self.heard.lock().clone()
    }

    fn note(&self, replies: Vec<(u64, Option<pb::HealthReply>)>, at: Instant) {
        let mut heard = self.heard.lock();
        heard.retain(|id, _| replies.iter().any(|(asked, _)| asked == id));
        for (id, reply) in replies {
            if let Some(reply) = reply {
                heard.insert(id, Heard { at, reply });
            }
        }
    }
}

/// What this node says of itself.
pub(crate) fn own(core: &Core) -> pb::HealthReply {
    let (sync_p50_us, sync_p99_us) = core.log.sync_times();
    let digest = |(rev, digest): (u64, u128)| pb::DigestAt { rev, digest: digest.to_be_bytes().to_vec().into() };
    pb::HealthReply {
        node_id: core.settings.config.node_id,
        feature_level: level::understood(),
        disk: Some(core.disk.now()),
        sync_p50_us,
        sync_p99_us,
        digests: core.replica.digests().into_iter().map(digest).collect(),
        applied_index: applied_index(core),
        member_ids: core.members().into_keys().collect(),
        now_ms: if leads_for_certain(core) { core.clock.now_ms() } else { 0 },
        heard_ms: core.clock.told_ms(Instant::now()),
    }
}

/// Starts asking.
pub(crate) fn start(core: &Arc<Core>) {
    tokio::spawn(run(core.clone()));
}

async fn run(core: Arc<Core>) {
    let this = core.settings.config.node_id;
    loop {
        let applied = applied_index(&core);
        let members = core.members();
        let asked = members.iter().filter(|(id, _)| **id != this).map(|(id, address)| listen(&core, *id, address));
        let replies = join_all(asked).await;
        if leads_for_certain(&core) {
            // Nobody tells a leader the time: should it lose its office and regain it, its own word counts.
            core.clock.heard(core.clock.now_ms(), Instant::now());
        }
        if core.joined() && replies.iter().any(|(_, reply)| reply.as_ref().is_some_and(|one| drops(one, this, applied)))
        {
            tracing::warn!("node {this} was removed from its cluster and stops; its number is not used again");
            return core.stop.now(Reason::Signal);
        }
        core.neighbours.note(replies, Instant::now());
        let mine = digests(&own(&core));
        let members = core.roster.now();
        let heard = core.neighbours.all().into_iter().filter(|(id, _)| members.voters.contains(id));
        let others: Vec<_> = heard.map(|(_, heard)| digests(&heard.reply)).collect();
        if let Some(rev) = outvoted(&mine, &others, members.majority()) {
            let why = format!("this node's state differs at rev {rev} from the one that a majority has");
            return core.fence(&why);
        }
        tokio::time::sleep(ROUND).await;
    }
}

/// As [`ask`]; what it says of the time counts from the moment at which it says so.
async fn listen(core: &Core, node_id: u64, address: &str) -> (u64, Option<pb::HealthReply>) {
    let (node_id, reply) = ask(core, node_id, address).await;
    if let Some(reply) = &reply {
        let now = Instant::now();
        core.clock.heard(reply.now_ms, now);
        core.clock.heard_of(reply.heard_ms, now);
    }
    (node_id, reply)
}

/// One that was cut off goes on leading for itself; its time is nobody's.
fn leads_for_certain(core: &Core) -> bool {
    let acked = core.metrics().last_quorum_acked;
    core.office().is_some() && acked.is_some_and(|acked| acked.elapsed() < FRESH)
}

/// What a member says of itself now.
pub(crate) async fn ask(core: &Core, node_id: u64, address: &str) -> (u64, Option<pb::HealthReply>) {
    let asking = async {
        let mut client = core.peers.client(address).ok()?;
        Some(client.health(core.peers.request(pb::HealthRequest {})).await.ok()?.into_inner())
    };
    let reply = tokio::time::timeout(ROUND, asking).await.ok().flatten();
    (node_id, reply.filter(|reply| reply.node_id == node_id))
}

fn applied_index(core: &Core) -> u64 {
    core.replica.head().applied.map_or(0, |(_, index)| index)
}

/// Whether a member that has applied at least as much as this node does not count it among the members. Who is behind may know
/// them from before this node came.
fn drops(reply: &pb::HealthReply, this: u64, applied: u64) -> bool {
    reply.applied_index >= applied && !reply.member_ids.is_empty() && !reply.member_ids.contains(&this)
}

fn digests(reply: &pb::HealthReply) -> BTreeMap<u64, Vec<u8>> {
    reply.digests.iter().map(|one| (one.rev, one.digest.to_vec())).collect()
}

/// The first rev at which a majority of the voters agree with each other and not with this node. Fewer say nothing about who is
/// wrong.
fn outvoted(mine: &BTreeMap<u64, Vec<u8>>, others: &[BTreeMap<u64, Vec<u8>>], majority: usize) -> Option<u64> {
    mine.iter().find_map(|(rev, own)| {
        let mut votes: BTreeMap<&[u8], usize> = BTreeMap::new();
        for digest in others.iter().filter_map(|other| other.get(rev)).filter(|digest| *digest != own) {
            *votes.entry(digest.as_slice()).or_default() += 1;
        }
        votes.values().any(|votes| *votes >= majority).then_some(*rev)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(digests: &[(u64, u8)]) -> BTreeMap<u64, Vec<u8>> {
        digests.iter().map(|(rev, digest)| (*rev, vec![*digest])).collect()
    }

    #[test]
    fn who_differs_from_most_is_outvoted_and_nobody_else_is() {
        let (right, wrong) = (at(&[(1024, 1), (2050, 2)]), at(&[(1024, 1), (2050, 9)]));
        assert_eq!(outvoted(&wrong, &[right.clone(), right.clone()], 2), Some(2050));
        assert_eq!(outvoted(&right, &[right.clone(), wrong.clone()], 2), None);
        // One against one, and three that all differ: nobody can say who is right.
        assert_eq!(outvoted(&wrong, std::slice::from_ref(&right), 2), None);
        assert_eq!(outvoted(&wrong, &[right.clone(), at(&[(2050, 3)])], 2), None);
        // Two of five are no majority.
        assert_eq!(outvoted(&wrong, &[right.clone(), right.clone()], 3), None);
        // One that lags behind has nothing to compare.
        assert_eq!(outvoted(&at(&[(512, 7)]), &[right.clone(), right], 2), None);
    }

    #[test]
    fn only_who_is_not_behind_drops_a_member() {
        let reply = |applied_index, member_ids: &[u64]| pb::HealthReply {
            applied_index,
            member_ids: member_ids.to_vec(),
            ..pb::HealthReply::default()
        };
        assert!(drops(&reply(7, &[1, 2]), 3, 7));
        assert!(!drops(&reply(6, &[1, 2]), 3, 7), "it may not have heard of this node yet");
        assert!(!drops(&reply(7, &[1, 2, 3]), 3, 7));
        assert!(!drops(&reply(7, &[]), 3, 7), "an older binary does not say");
    }

    #[test]
    fn who_left_is_forgotten() {
        let neighbours = Neighbours::default();
        let reply = |node_id| pb::HealthReply { node_id, ..pb::HealthReply::default() };
        neighbours.note(vec![(2, Some(reply(2))), (3, Some(reply(3)))], Instant::now());
        // Silence is not absence: what it said last stays, and grows old.
        neighbours.note(vec![(2, None)], Instant::now());
        assert_eq!(neighbours.all().keys().copied().collect::<Vec<_>>(), [2]);
    }
}
