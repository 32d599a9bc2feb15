//! Who belongs to the cluster, as far as this node knows.
//!
//! What consensus has recorded counts. Before the cluster has begun, or before this node has heard anything of it, it is what
//! the settings say: they found a cluster and find one, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::RwLock;
use quorate_raft::consensus::types::Raft;

use crate::config::Settings;
use crate::core::Core;
use crate::stop::Reason;

/// The members at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Members {
    /// Where each is reached: voters, and those that only learn.
    pub(crate) addresses: BTreeMap<u64, String>,
    /// Whose word counts towards a majority.
    pub(crate) voters: BTreeSet<u64>,
}

impl Members {
    /// How many voters are more than half of them.
    pub(crate) fn majority(&self) -> usize {
        self.voters.len() / 2 + 1
    }
}

/// The list that everybody reads and one loop keeps.
pub(crate) struct Roster {
    now: RwLock<Arc<Members>>,
}

impl Roster {
    /// What the settings say. A node that joins a cluster which runs already is no voter of it yet.
    pub(crate) fn new(settings: &Settings) -> Self {
        let addresses = settings.members.clone();
        let is_new = |id: &u64| settings.config.join && *id == settings.config.node_id;
        let voters = addresses.keys().copied().filter(|id| !is_new(id)).collect();
        Roster { now: RwLock::new(Arc::new(Members { addresses, voters })) }
    }

    /// The members as they are now.
    pub(crate) fn now(&self) -> Arc<Members> {
        self.now.read().clone()
    }

    /// Takes over what consensus knows, if it knows of any member.
    pub(crate) fn learn(&self, raft: &Raft) {
        let recorded = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow_watched();
            let membership = &metrics.membership_config;
            let addresses = membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect();
            Members { addresses, voters: membership.voter_ids().collect() }
        };
        if !recorded.addresses.is_empty() && *self.now() != recorded {
            *self.now.write() = Arc::new(recorded);
        }
    }
}

/// Keeps the list as long as the node runs, and in the data directory who votes.
pub(crate) async fn follow(core: Arc<Core>) {
    let mut metrics = core.raft.metrics();
    loop {
        core.roster.learn(&core.raft);
        let members = core.roster.now();
        // A node that has not joined knows its cluster by its settings only.
        if core.joined()
            && let Err(error) = core.data_dir.lock().set_voters(&members.voters)
        {
            return core.stop.now(Reason::Fault(format!("{error:#}")));
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}
