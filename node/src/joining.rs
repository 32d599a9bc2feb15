//! How a node comes into its cluster, and what one whose disk is empty may not do before it has.
//!
//! A data directory starts as one that belongs to no cluster. It joins by beginning one with the others that its settings
//! name, or by catching up with one that runs. Until then it neither votes nor campaigns, and follows nobody before it has
//! heard from enough others: it may have been a member whose disk was lost, and have forgotten the votes it gave. The
//! reasons are in `docs/adr/0006-joining.md`.
//!
//! Deliberately absent: who is let in. That is a change of the members, which the leader makes when it is asked to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use openraft::impls::BasicNode;
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::{JoinInfoRequest, NodeStatusRequest};
use tonic::Code;
use tonic::transport::Endpoint;

use crate::core::Core;
use crate::grpc;
use crate::stop::Reason;

/// Between looks at whether a new node has joined.
const POLL: Duration = Duration::from_millis(100);
/// How long another node may take to say what it knows.
const ASK: Duration = Duration::from_secs(1);

/// What a node with an empty disk must know before it follows anybody.
#[derive(Debug, Clone, Default)]
pub(crate) struct Floor {
    /// The highest term that the others knew of: a leader of an older one was deposed, perhaps by this node's own vote.
    pub(crate) term: u64,
    /// Where the members are, as the others say.
    pub(crate) addresses: BTreeMap<u64, String>,
}

/// Brings a new node into its cluster: begins the cluster if nobody has, otherwise waits until it has caught up. Only
/// then does it vote and campaign.
pub(crate) async fn join(core: Arc<Core>) {
    let mut told = false;
    while !core.joined() {
        match try_join(&core).await {
            Ok(true) => tracing::info!("this node has joined its cluster"),
            Ok(false) => {
                if !told {
                    tracing::info!("{}", what_it_waits_for(&core));
                    told = true;
                }
                tokio::time::sleep(POLL).await;
            }
            Err(error) => return core.stop.now(Reason::Fault(format!("joining failed: {error:#}"))),
        }
    }
}

fn what_it_waits_for(core: &Core) -> String {
    let id = core.settings.config.node_id;
    if core.settings.config.join {
        let address = core.settings.advertised();
        return format!("waiting to be let in: run `quorate cluster add {id}={address}` against the cluster");
    }
    "waiting to join: the cluster begins when all its nodes are up".to_owned()
}

async fn try_join(core: &Core) -> anyhow::Result<bool> {
    let initialized = core.raft.is_initialized().await.map_err(|e| anyhow::anyhow!("{e}"))?;
    // Who has had other voters beside it than the settings name belongs to a cluster that runs, whatever became of its disk.
    let is_named = core.data_dir.lock().voters().iter().all(|id| core.settings.members.contains_key(id));
    let founds = !core.settings.config.join && is_named;
    let begins = founds && core.settings.members.keys().next() == Some(&core.settings.config.node_id);
    if initialized {
        // A crash may have come between beginning the cluster and noting that this node belongs to it.
        let just_begun = begins && core.metrics().last_log_index.is_none_or(|index| index == 0);
        if !(just_begun && nobody_has_begun(core).await) && core.reads.pass().await.is_err() {
            return Ok(false);
        }
        core.set_joined()?;
        return Ok(true);
    }
    if !begins || !nobody_has_begun(core).await {
        return Ok(false);
    }
    let members = &core.settings.members;
    let nodes: BTreeMap<u64, BasicNode> = members.iter().map(|(id, address)| (*id, BasicNode::new(address))).collect();
    core.raft.initialize(nodes).await.map_err(|e| anyhow::anyhow!("the cluster could not begin: {e}"))?;
    core.set_joined()?;
    Ok(true)
}

/// Every other member says that it belongs to no cluster yet. One that does not answer may belong to one that has begun:
/// then this disk was wiped.
async fn nobody_has_begun(core: &Core) -> bool {
    let others = core.settings.members.iter().filter(|(id, _)| **id != core.settings.config.node_id);
    let answers = others.map(|(id, address)| grpc::status_of(*id, address));
    join_all(answers).await.into_iter().all(|status| status.is_some_and(|status| grpc::term_of(&status) == 0))
}

/// What one other node said when it was asked.
struct Said {
    node_id: u64,
    term: u64,
    voters: BTreeSet<u64>,
    members: BTreeMap<u64, String>,
}

/// Asks the others what they know, those included that only they know of. The error says why that is not enough.
pub(crate) async fn ask_for_floor(core: &Core) -> Result<Floor, String> {
    let this = core.settings.config.node_id;
    let mut addresses = core.settings.members.clone();
    let mut said: BTreeMap<u64, Said> = BTreeMap::new();
    // Whoever is asked may name members that the settings do not.
    for _ in 0..2 {
        let asked = addresses.iter().filter(|(id, _)| **id != this && !said.contains_key(*id));
        let answers = join_all(asked.map(|(id, address)| ask(*id, address))).await;
        for one in answers.into_iter().flatten() {
            addresses.extend(one.members.clone());
            said.insert(one.node_id, one);
        }
    }
    let mut electorates: BTreeSet<BTreeSet<u64>> = said.values().map(|one| one.voters.clone()).collect();
    electorates.retain(|voters| !voters.is_empty());
    if electorates.is_empty() {
        electorates.insert(core.settings.members.keys().copied().collect());
    }
    let remembered = core.data_dir.lock().voters().clone();
    electorates.extend(Some(remembered).filter(|voters| !voters.is_empty()));
    let heard: BTreeSet<u64> = said.keys().copied().collect();
    for voters in &electorates {
        enough(voters, &heard, this)?;
    }
    let term = said.values().map(|one| one.term).max().unwrap_or(0);
    Ok(Floor { term, addresses })
}

/// Any majority of these voters that this node was part of has one of those among it that were heard.
fn enough(voters: &BTreeSet<u64>, heard: &BTreeSet<u64>, this: u64) -> Result<(), String> {
    let others = voters.iter().filter(|id| **id != this).count();
    // Those of two memberships at once, while one voter is exchanged: a majority of each may be one fewer.
    let majority = voters.len().saturating_sub(1) / 2 + 1;
    let needed = (voters.len() - majority + 1).min(others);
    let answered = voters.intersection(heard).filter(|id| **id != this).count();
    if answered >= needed {
        return Ok(());
    }
    Err(format!("this node's disk is empty: it follows nobody before {needed} of {voters:?} have said what they know"))
}

async fn ask(node_id: u64, address: &str) -> Option<Said> {
    let asking = async {
        let channel =
            Endpoint::from_shared(format!("http://{address}")).ok()?.connect_timeout(ASK).connect().await.ok()?;
        let mut client = ClusterClient::new(channel);
        let status = client.node_status(NodeStatusRequest { full_digest: false }).await.ok()?.into_inner();
        let members = match client.join_info(JoinInfoRequest {}).await {
            Ok(info) => info.into_inner().members.into_iter().map(|member| (member.node_id, member.address)).collect(),
            // An older binary. Members could not be changed in its time: the settings name them all.
            Err(status) if status.code() == Code::Unimplemented => BTreeMap::new(),
            Err(_) => return None,
        };
        let term = grpc::term_of(&status);
        Some(Said { node_id: status.node_id, term, voters: status.voter_ids.into_iter().collect(), members })
    };
    let said = tokio::time::timeout(2 * ASK, asking).await.ok().flatten()?;
    (said.node_id == node_id).then_some(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_majority_with_this_node_in_it_is_heard() {
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        for size in 1_u64..=7 {
            let voters: BTreeSet<u64> = (1..=size).collect();
            for this in [1, 99] {
                for mask in 0_u64..1 << size {
                    let heard: BTreeSet<u64> = voters.iter().copied().filter(|id| mask >> (id - 1) & 1 == 1).collect();
                    let is_enough = enough(&voters, &heard, this).is_ok();
                    // By brute force: each majority must have somebody else in it who was heard.
                    let majorities = (0_u64..1 << size).filter(|m| m.count_ones() as usize > voters.len() / 2);
                    let covered =
                        majorities.map(|m| voters.iter().copied().filter(|id| m >> (id - 1) & 1 == 1).collect());
                    let all = covered.into_iter().all(|m: BTreeSet<u64>| {
                        m == set(&[this]) || m.iter().any(|id| *id != this && heard.contains(id))
                    });
                    assert!(!is_enough || all, "{voters:?} heard {heard:?} as {this}");
                }
            }
        }
        assert!(enough(&set(&[1, 2, 3]), &set(&[2, 3]), 1).is_ok());
        assert!(enough(&set(&[1, 2, 3]), &set(&[2]), 1).is_err());
        assert!(enough(&set(&[1]), &set(&[]), 1).is_ok());
    }
}
