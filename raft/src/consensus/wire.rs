//! openraft's types to and from the peer protocol, which is also the stored form of entries, votes and memberships.

use std::collections::BTreeMap;

use bytes::Bytes;
use openraft::EntryPayload as Content;
use openraft::alias::SnapshotMetaOf;
use openraft::impls::BasicNode;
use openraft::vote::RaftLeaderId;
use openraft::vote::leader_id_std::LeaderId;
use prost::Message;
use quorate_proto::peer as pb;

use super::types::{Entry, LogId, Membership, Payload, StoredMembership, TypeConfig, Vote};
use crate::error::Fatal;

/// To the wire.
pub fn log_id(id: &LogId) -> pb::LogId {
    pb::LogId { term: id.leader_id.term, index: id.index }
}

/// From the wire.
pub fn read_log_id(id: &pb::LogId) -> LogId {
    LogId::new_term_index(id.term, id.index)
}

/// To the wire.
pub fn vote(vote: &Vote) -> pb::Vote {
    pb::Vote { term: vote.leader_id.term, node_id: vote.leader_id.voted_for, committed: vote.committed }
}

/// From the wire.
pub fn read_vote(vote: &pb::Vote) -> Vote {
    Vote { leader_id: LeaderId::new(vote.term, vote.node_id), committed: vote.committed }
}

/// From the wire, where a vote must be.
pub fn require_vote(found: Option<&pb::Vote>) -> Result<Vote, Fatal> {
    found.map(read_vote).ok_or_else(|| Fatal::Corrupt("a peer message has no vote".to_owned()))
}

/// To the wire.
pub fn membership(membership: &Membership) -> pb::Membership {
    pb::Membership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|voters| pb::VoterSet { node_ids: voters.iter().copied().collect() })
            .collect(),
        nodes: membership.nodes().map(|(id, node)| pb::Node { node_id: *id, address: node.addr.clone() }).collect(),
    }
}

/// From the wire.
pub fn read_membership(found: &pb::Membership) -> Result<Membership, Fatal> {
    let configs = found.configs.iter().map(|set| set.node_ids.iter().copied().collect()).collect();
    let nodes: BTreeMap<u64, BasicNode> =
        found.nodes.iter().map(|node| (node.node_id, BasicNode::new(&node.address))).collect();
    Membership::new(configs, nodes).map_err(|e| Fatal::Corrupt(format!("a stored membership is not valid: {e}")))
}

/// To the stored form.
pub fn stored_membership(stored: &StoredMembership) -> pb::StoredMembership {
    pb::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id),
        membership: Some(membership(stored.membership())),
    }
}

/// From the stored form; empty bytes are no membership yet.
pub fn decode_stored_membership(bytes: Bytes) -> Result<StoredMembership, Fatal> {
    if bytes.is_empty() {
        return Ok(StoredMembership::default());
    }
    read_stored_membership(&pb::StoredMembership::decode(bytes)?)
}

/// From the wire.
pub fn read_stored_membership(stored: &pb::StoredMembership) -> Result<StoredMembership, Fatal> {
    let membership = match &stored.membership {
        // The default of a cluster that has not begun: no voter at all.
        Some(found) if !found.configs.is_empty() => read_membership(found)?,
        _ => Membership::default(),
    };
    Ok(StoredMembership::new(stored.log_id.as_ref().map(read_log_id), membership))
}

/// To the wire.
pub fn entry(entry: &Entry) -> pb::Entry {
    let payload = match &entry.payload {
        Content::Blank => pb::entry::Payload::Blank(pb::Blank {}),
        Content::Normal(Payload(bytes)) => pb::entry::Payload::Normal(bytes.clone()),
        Content::Membership(found) => pb::entry::Payload::Membership(membership(found)),
    };
    pb::Entry { log_id: Some(log_id(&entry.log_id)), payload: Some(payload) }
}

/// From the wire.
pub fn read_entry(found: pb::Entry) -> Result<Entry, Fatal> {
    let (Some(id), Some(payload)) = (found.log_id, found.payload) else {
        return Err(Fatal::Corrupt("a log entry lacks its id or its payload".to_owned()));
    };
    let payload = match payload {
        pb::entry::Payload::Blank(_) => Content::Blank,
        pb::entry::Payload::Normal(bytes) => Content::Normal(Payload(bytes)),
        pb::entry::Payload::Membership(found) => Content::Membership(read_membership(&found)?),
    };
    Ok(Entry { log_id: read_log_id(&id), payload })
}

/// To the stored form.
pub fn encode_entry(found: &Entry) -> Bytes {
    entry(found).encode_to_vec().into()
}

/// From the stored form. Shares the buffer: the payload is not copied.
pub fn decode_entry(bytes: Bytes) -> Result<Entry, Fatal> {
    read_entry(pb::Entry::decode(bytes)?)
}

/// To the wire.
pub fn snapshot_meta(meta: &SnapshotMetaOf<TypeConfig>) -> pb::SnapshotMeta {
    pb::SnapshotMeta {
        last_log_id: meta.last_log_id.as_ref().map(log_id),
        last_membership: Some(stored_membership(&meta.last_membership)),
    }
}
