//! The parts of a running node that its doors and loops share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::Mutex;
use quorate_raft::consensus::log_storage::LogStorage;
use quorate_raft::consensus::network::Peers;
use quorate_raft::consensus::types::Raft;
use quorate_raft::replica::Replica;

use crate::blobs::Blobs;
use crate::clock::Clock;
use crate::config::Settings;
use crate::data_dir::{DataDir, Unfinished};
use crate::disk::Disk;
use crate::hub::Hubs;
use crate::joining::Floor;
use crate::leases::Leases;
use crate::members::UnderWay;
use crate::neighbours::Neighbours;
use crate::propose::Proposer;
use crate::reads::ReadBarrier;
use crate::roster::Roster;
use crate::stop::{Reason, Stop};

/// One running node.
pub(crate) struct Core {
    pub(crate) settings: Settings,
    pub(crate) raft: Raft,
    pub(crate) replica: Arc<Replica>,
    pub(crate) log: LogStorage,
    pub(crate) peers: Peers,
    pub(crate) clock: Arc<Clock>,
    pub(crate) proposer: Proposer,
    pub(crate) reads: ReadBarrier,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) hubs: Arc<Hubs>,
    /// This node is to stop: hand over, finish what is under way.
    pub(crate) stop: Stop,
    /// Leadership is handed over: streams that would never end are ended.
    pub(crate) closing: Stop,
    pub(crate) started: Instant,
    /// The term in which this node has taken office: its clock is set, and its table of leases filled.
    pub(crate) office: AtomicU64,
    pub(crate) data_dir: Mutex<DataDir>,
    /// What the others knew when this node, its disk being empty, asked them.
    pub(crate) floor: Mutex<Option<Floor>>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) neighbours: Arc<Neighbours>,
    pub(crate) members_change: UnderWay,
}

/// Who leads, as far as this node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Leadership {
    /// This node, in this term.
    Here { term: u64 },
    /// Another node, at this address.
    There { node_id: u64, address: String },
    /// Nobody that it knows of.
    Unknown,
}

/// Asks openraft's metrics, which cost no lock that matters.
pub(crate) fn leadership(raft: &Raft) -> Leadership {
    match raft.as_leader() {
        Ok(leader) => Leadership::Here { term: leader.term() },
        Err(forward) => match (forward.leader_id, forward.leader_node) {
            (Some(node_id), Some(node)) => Leadership::There { node_id, address: node.addr },
            _ => Leadership::Unknown,
        },
    }
}

impl Core {
    /// Who leads, as far as this node knows.
    pub(crate) fn leadership(&self) -> Leadership {
        leadership(&self.raft)
    }

    /// The term in which this node leads, once it has taken office in it: only then it acts of its own accord.
    pub(crate) fn office(&self) -> Option<u64> {
        match self.leadership() {
            Leadership::Here { term } if self.office.load(Ordering::Acquire) == term => Some(term),
            _ => None,
        }
    }

    /// The gRPC address of the leader, if it is known and is not this node: what a client should call instead.
    pub(crate) fn leader_hint(&self) -> Option<String> {
        match self.leadership() {
            Leadership::There { address, .. } => Some(address),
            Leadership::Here { .. } | Leadership::Unknown => None,
        }
    }

    /// Every member with its address, this node included.
    pub(crate) fn members(&self) -> BTreeMap<u64, String> {
        self.roster.now().addresses.clone()
    }

    /// Whose word counts towards a majority.
    pub(crate) fn voters(&self) -> BTreeSet<u64> {
        self.roster.now().voters.clone()
    }

    /// Whether this node is a majority by itself.
    pub(crate) fn is_alone(&self) -> bool {
        let members = self.roster.now();
        members.voters.len() == 1 && members.voters.contains(&self.settings.config.node_id)
    }

    /// Whether this node knows its cluster's log, and so may vote and campaign in it.
    pub(crate) fn joined(&self) -> bool {
        self.data_dir.lock().joined()
    }

    /// Stops this node for good: what it holds is not what the others rely on. No restart brings it back before its data is
    /// rebuilt.
    pub(crate) fn fence(&self, why: &str) {
        let path = self.data_dir.lock().path().to_owned();
        if let Err(error) = DataDir::begin(&path, Unfinished::Fenced) {
            tracing::error!(%error, "it could not be noted that this node may not start again");
        }
        self.stop.now(Reason::Fault(format!("{why}: rebuild it with `quorate cluster rebuild`")));
    }

    /// Records that it does, durably, before it acts on it.
    pub(crate) fn set_joined(&self) -> anyhow::Result<()> {
        self.data_dir.lock().set_joined()?;
        self.raft.runtime_config().elect(true);
        Ok(())
    }

    /// openraft's view of this node, copied: holding on to the borrowed one would block it.
    pub(crate) fn metrics(&self) -> openraft::RaftMetrics<quorate_raft::consensus::types::TypeConfig> {
        self.raft.metrics().borrow_watched().clone()
    }
}
