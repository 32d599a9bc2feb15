//! The one place where openraft's generics are filled in.

use bytes::Bytes;
use openraft::impls::leader_id_std;
use quorate_proto::log::Answer;

/// One entry's payload: an encoded batch of commands. Opaque to consensus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload(pub Bytes);

impl std::fmt::Display for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// The answers to one entry's commands, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answers(pub Vec<Answer>);

openraft::declare_raft_types!(
    /// Quorate's type configuration.
    pub TypeConfig:
        D = Payload,
        R = Answers,
        NodeId = u64,
        Node = openraft::impls::BasicNode,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
);

/// A running Raft node.
pub type Raft = openraft::Raft<TypeConfig, super::state_machine::StateMachine>;
/// Term and index.
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
/// Who may lead.
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
/// A log entry.
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
/// What an entry carries.
pub type EntryPayload = openraft::alias::PayloadOf<TypeConfig>;
/// Voters and learners.
pub type Membership = openraft::Membership<u64, openraft::impls::BasicNode>;
/// A membership and where in the log it came from.
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
