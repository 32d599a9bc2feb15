//! Changes of who is in the cluster: what must be done, in which order, and the doing of it.
//!
//! ```text
//!  add      learn ─▶ catch up ─▶ vote
//!  remove   (hand over) ─▶ retire the number ─▶ vote no more ─▶ forget
//!  replace  learn ─▶ catch up ─▶ retire the old number ─▶ new votes for old, in one change ─▶ forget
//! ```
//!
//! [`plan`] looks at the cluster as it is and says what is left to do. So a change that was cut off anywhere goes on when
//! it is asked for again, at whatever node leads by then; one that is done has no step left.
//!
//! A number is retired before its node loses its vote: a change that is cut off between the two can be told from one
//! that was never begun, and the number is never free in between. Consensus forgets the node too, or it would be sent
//! the log for ever.
//!
//! Deliberately absent: what becomes of the data of a node that left, and how a new one comes to life.

mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::impls::BasicNode;
use openraft::{ChangeMembers, Precondition};
use parking_lot::Mutex;
use quorate_proto::log::{Answer, RetireNode, answer, command};
use quorate_proto::peer::HealthRequest;
use quorate_proto::v1::{MembersChange, MembersStep};
use quorate_raft::consensus::types::TypeConfig;
use quorate_raft::error::{Error, precondition};
use quorate_raft::level::level_of;
use quorate_raft::state::cluster;
use quorate_raft::state::namespaces::DEFAULT;
use tokio::sync::mpsc::UnboundedSender;

use self::plan::{Catching, Progress, silent_majority};
pub(crate) use self::plan::{Change, Roster, Step, change_of, plan};
use crate::core::{Core, Leadership};
use crate::{grpc, neighbours};

/// Between looks at how far a node has caught up.
const PACE: Duration = Duration::from_millis(300);
/// How long a node may take to say which cluster it is of.
const ASK: Duration = Duration::from_secs(1);
/// A node that makes no progress for so long and does not answer is not waited for.
const SILENT: Duration = Duration::from_secs(60);
/// One that answers may be receiving a snapshot, which shows as no progress: so long and no longer.
const STUCK: Duration = Duration::from_secs(600);

/// Why a change did not come to its end.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// It cannot be done.
    Refused(Error),
    /// It goes on when it is asked for again, perhaps at another node.
    Again(String),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Stopped::Refused(error)
    }
}

/// The change that this node makes, if it makes one: there is never more than one.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    turn: tokio::sync::Mutex<()>,
    now: Mutex<Option<(Change, MembersChange)>>,
}

impl UnderWay {
    /// Keeps the members as they are for as long as it is held. `None`: they are being changed.
    pub(crate) fn hold(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        self.turn.try_lock().ok()
    }
}

/// Where the steps are told. Nobody need listen: a change goes on to its end.
struct Told<'a> {
    core: &'a Core,
    listener: &'a UnboundedSender<MembersChange>,
}

impl Told<'_> {
    fn step(&self, step: MembersStep, node_id: u64, behind_entries: u64, message: String) {
        let told = MembersChange { step: step as i32, node_id, behind_entries, message };
        if let Some((_, last)) = &mut *self.core.members_change.now.lock() {
            *last = told.clone();
        }
        let _gone = self.listener.send(told);
    }
}

/// Makes a change, and tells each step. Whoever asks for the same change again meanwhile hears how far it is; another
/// change is refused.
async fn run(core: &Core, change: &Change, listener: &UnboundedSender<MembersChange>) -> Result<(), Stopped> {
    let under_way = &core.members_change;
    let _turn = loop {
        if let Ok(turn) = under_way.turn.try_lock() {
            break turn;
        }
        let now = under_way.now.lock().clone();
        match now {
            Some((other, _)) if other != *change => {
                let message =
                    format!("another change is under way: {other}; wait until it is done, or ask for it again");
                return Err(precondition("change", message).into());
            }
            Some((_, last)) if last.step() != MembersStep::Unspecified => {
                let _gone = listener.send(last);
            }
            Some(_) | None => {}
        }
        if listener.is_closed() {
            return Err(Stopped::Again("nobody waits for it any more".to_owned()));
        }
        tokio::time::sleep(PACE).await;
    };
    *under_way.now.lock() = Some((change.clone(), MembersChange::default()));
    let made = make(core, change, &Told { core, listener }).await;
    *under_way.now.lock() = None;
    made
}

async fn make(core: &Core, change: &Change, told: &Told<'_>) -> Result<(), Stopped> {
    let term = core.office().ok_or_else(|| Stopped::Again("this node does not lead".to_owned()))?;
    end_joint(core).await?;
    // What was found here may not be committed: nothing is called done that a majority has not agreed to.
    core.reads.pass().await.map_err(Stopped::Again)?;
    let roster = roster(core)?;
    let steps = plan(&roster, change)?;
    check_level(&roster, &steps)?;
    check_majority(core, &roster, change, &steps).await?;
    if let Some((node_id, address)) = change.newcomer()
        && !roster.voters.contains(&node_id)
        && !steps.is_empty()
    {
        check_answers(core, node_id, address, roster.level).await?;
    }
    for step in steps {
        still_leads(core, term)?;
        take(core, term, step, told).await?;
    }
    tracing::info!(%change, "the members were changed");
    told.step(MembersStep::Done, change.node_id(), 0, format!("done: {change}"));
    Ok(())
}

async fn take(core: &Core, term: u64, step: Step, told: &Told<'_>) -> Result<(), Stopped> {
    match step {
        Step::Learn { node_id, address } => {
            let learning = core.raft.add_learner(node_id, BasicNode::new(&address), false).await;
            learning.map_err(|error| not_changed(&error))?;
            let behind = core.metrics().last_log_index.unwrap_or(0);
            told.step(MembersStep::Learning, node_id, behind, format!("node {node_id} receives the log"));
        }
        Step::CatchUp { node_id } => catch_up(core, term, node_id, told).await?,
        Step::HandOver => {
            let leader = crate::grpc::hand_over(core, 0).await.map_err(Stopped::Again)?;
            return Err(Stopped::Again(format!("leadership went to node {leader}: the change goes on there")));
        }
        Step::Retire { node_id } => {
            retire(core, term, node_id).await?;
            told.step(MembersStep::Retired, node_id, 0, format!("the number {node_id} is never used again"));
        }
        Step::Voters { node_id, voters } => {
            let message = format!("the voters are {}", plan::numbers(&voters));
            change_nodes(core, ChangeMembers::ReplaceAllVoters(voters)).await?;
            told.step(MembersStep::VotersChanged, node_id, 0, message);
        }
        Step::Forget { node_id } => {
            if roster(core)?.nodes.contains_key(&node_id) {
                change_nodes(core, ChangeMembers::RemoveNodes(BTreeSet::from([node_id]))).await?;
            }
        }
    }
    Ok(())
}

/// Brings the membership that a deposed leader left half-way to where that one wanted it.
async fn end_joint(core: &Core) -> Result<(), Stopped> {
    let joint = core.metrics().membership_config.get_joint_config().clone();
    match joint.last() {
        Some(target) if joint.len() > 1 => change_nodes(core, ChangeMembers::ReplaceAllVoters(target.clone())).await,
        _ => Ok(()),
    }
}

/// Changes the membership, only if it still is what this node knows.
async fn change_nodes(core: &Core, change: ChangeMembers<u64, BasicNode>) -> Result<(), Stopped> {
    let known = *core.metrics().membership_config.log_id();
    let unchanged = [Precondition::LastMembershipLogId { last_membership_log_id: known }];
    // Without `retain`: a voter that is left out is no learner afterwards, but gone.
    let changed = core.raft.change_membership_if(change, false, unchanged).await;
    changed.map(drop).map_err(|error| not_changed(&error))
}

fn not_changed(error: &RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Stopped {
    Stopped::Again(format!("the membership was not changed: {error}"))
}

fn still_leads(core: &Core, term: u64) -> Result<(), Stopped> {
    if core.leadership() == (Leadership::Here { term }) {
        return Ok(());
    }
    Err(Stopped::Again("this node does not lead any more".to_owned()))
}

fn roster(core: &Core) -> Result<Roster, Stopped> {
    let metrics = core.metrics();
    let info = core.replica.read(|whole| cluster::get(whole.rows)).map_err(|fatal| Stopped::Refused(fatal.into()))?;
    let info = info.ok_or_else(|| Stopped::Again("the cluster has no name yet".to_owned()))?;
    let membership = &metrics.membership_config;
    Ok(Roster {
        leader: metrics.id,
        voters: membership.voter_ids().collect(),
        nodes: membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect(),
        retired: info.retired_node_ids.into_iter().collect(),
        level: info.feature_level,
    })
}

/// A number can be retired only once every node understands that. Better said before a node has caught up for an hour.
fn check_level(roster: &Roster, steps: &[Step]) -> Result<(), Stopped> {
    let needed = level_of(&command::Body::RetireNode(RetireNode::default()));
    let retires = steps.iter().any(|step| matches!(step, Step::Retire { .. } | Step::HandOver));
    if !retires || roster.level >= needed {
        return Ok(());
    }
    let message = format!(
        "removing a node needs feature level {needed}, the cluster runs at {}: once every node is upgraded, run \
         `quorate cluster raise-level`",
        roster.level
    );
    Err(precondition("change", message).into())
}

/// Whoever votes must be there to do so. A node that is let in only now has proved it by then.
async fn check_majority(core: &Core, roster: &Roster, change: &Change, steps: &[Step]) -> Result<(), Stopped> {
    if steps.is_empty() {
        return Ok(());
    }
    let newcomer = change.newcomer().map(|(node_id, _)| node_id).filter(|id| !roster.voters.contains(id));
    let members = core.members();
    let asked = members.iter().map(|(id, address)| neighbours::ask(core, *id, address));
    let answered = join_all(asked).await.into_iter().filter_map(|(id, reply)| reply.map(|_| id));
    let answered: BTreeSet<u64> = answered.chain([roster.leader]).chain(newcomer).collect();
    // Those that vote now must agree to the change, those that vote afterwards to everything else.
    for voters in [roster.voters.clone(), change.voters_after(&roster.voters)] {
        let present: BTreeSet<u64> = voters.intersection(&answered).copied().collect();
        if let Some(silent) = silent_majority(&voters, &present) {
            let message = format!(
                "it takes a majority of the voters {}, and {} not answer; bring that back first",
                plan::numbers(&voters),
                plan::do_not(&silent)
            );
            return Err(precondition("change", message).into());
        }
    }
    Ok(())
}

/// A node that is to be let in must be up, of that number, and of this cluster.
async fn check_answers(core: &Core, node_id: u64, address: &str, level: u32) -> Result<(), Stopped> {
    let nobody = || {
        let message = format!("nobody answers at {address} as node {node_id}: start it with --join first");
        Stopped::Refused(precondition("address", message))
    };
    let status = grpc::status_of(node_id, address).await.ok_or_else(nobody)?;
    if status.voter_ids.contains(&node_id) {
        let message =
            format!("node {node_id} has begun a cluster of its own: empty its data directory and start it with --join");
        return Err(precondition("address", message).into());
    }
    let mut peer = core.peers.client(address).map_err(|_| nobody())?;
    match tokio::time::timeout(ASK, peer.health(core.peers.request(HealthRequest {}))).await {
        Ok(Ok(reply)) => {
            let understood = reply.get_ref().feature_level.max(1);
            if understood < level {
                let message = format!(
                    "node {node_id} understands level {understood}, the cluster runs at {level}: upgrade it first"
                );
                return Err(precondition("address", message).into());
            }
            Ok(())
        }
        Ok(Err(status)) if status.code() == tonic::Code::PermissionDenied => {
            let message = format!("the node at {address} is none of this cluster: {}", status.message());
            Err(precondition("address", message).into())
        }
        Ok(Err(_)) | Err(_) => Err(nobody()),
    }
}

async fn has_applied(core: &Core, node_id: u64, last: u64) -> bool {
    let Some(address) = core.members().get(&node_id).cloned() else { return false };
    let status = grpc::status_of(node_id, &address).await;
    status.is_some_and(|status| status.applied_index.saturating_add(plan::NEARLY) >= last)
}

async fn retire(core: &Core, term: u64, node_id: u64) -> Result<(), Stopped> {
    let body = command::Body::RetireNode(RetireNode { node_id });
    match core.proposer.propose_as_leader(DEFAULT, body, term).await {
        Ok(Answer { body: Some(answer::Body::Rejected(rejection)), .. }) => Err(Error::Rejected(rejection).into()),
        Ok(_) => Ok(()),
        Err(error) => Err(Stopped::Again(error.to_string())),
    }
}

/// Waits until a node has what there is, or nearly: it gets the rest while it votes.
async fn catch_up(core: &Core, term: u64, node_id: u64, told: &Told<'_>) -> Result<(), Stopped> {
    let mut catching = Catching::begin(core.metrics().last_log_index.unwrap_or(0), Instant::now());
    loop {
        still_leads(core, term)?;
        let metrics = core.metrics();
        let matched = metrics.replication.as_ref().and_then(|all| all.get(&node_id).cloned().flatten());
        let last = metrics.last_log_index.unwrap_or(0);
        match catching.look(last, matched.map(|log_id| log_id.index), Instant::now()) {
            // By its own word: what it acknowledged it may have lost since, or not applied yet.
            Progress::CaughtUp if has_applied(core, node_id, last).await => break,
            Progress::CaughtUp => {}
            Progress::Behind { entries, still_for } => {
                if still_for >= SILENT && (still_for >= STUCK || !answers(core, node_id).await) {
                    let message = format!(
                        "node {node_id} lacks {entries} entries and has made no progress for {} s; it stays a learner, \
                         and the same change goes on once it does",
                        still_for.as_secs()
                    );
                    return Err(precondition("change", message).into());
                }
                let message = format!("node {node_id} lacks {entries} entries");
                told.step(MembersStep::Learning, node_id, entries, message);
            }
        }
        tokio::time::sleep(PACE).await;
    }
    told.step(MembersStep::CaughtUp, node_id, 0, format!("node {node_id} has caught up"));
    Ok(())
}

async fn answers(core: &Core, node_id: u64) -> bool {
    let nodes: BTreeMap<u64, String> = core.members();
    match nodes.get(&node_id) {
        Some(address) => grpc::status_of(node_id, address).await.is_some(),
        None => false,
    }
}

/// Makes a change on its own, so that it goes on to its end even if whoever asked for it has gone.
pub(crate) fn start(
    core: &Arc<Core>,
    change: Change,
    listener: UnboundedSender<MembersChange>,
) -> tokio::task::JoinHandle<Result<(), Stopped>> {
    let core = core.clone();
    tokio::spawn(async move { run(&core, &change, &listener).await })
}
