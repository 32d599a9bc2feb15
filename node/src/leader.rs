//! The loops that act: passing effects on, taking and leaving office, ending lapsed sessions, running what is due.
//!
//! Only a leader proposes, each time as the leader of the term in which it saw the reason: a deposed one is refused by
//! its own consensus. An idle cluster proposes nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use openraft::async_runtime::watch::WatchReceiver;
use quorate_proto::log::{Answer, ExpireSession, Tick, answer, command};
use quorate_proto::v1::{ClusterInfo, RejectionCode};
use quorate_raft::apply::Happened;
use quorate_raft::effect::Effect;
use quorate_raft::level;
use quorate_raft::state::cluster;
use quorate_raft::state::namespaces::DEFAULT;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::core::{Core, Leadership};
use crate::leases::{self, Key, Lapsed};
use crate::propose::ProposeError;
use crate::stop::Reason;

/// Sessions ended by one round.
const LAPSED_PER_ROUND: usize = 256;
/// The pause after a proposal that did not go through.
const RETRY: Duration = Duration::from_millis(50);

/// Starts every loop.
pub(crate) fn start(core: &Arc<Core>, effects: UnboundedReceiver<Vec<Happened>>) {
    tokio::spawn(pass_on_effects(core.clone(), effects));
    tokio::spawn(follow_office(core.clone()));
    tokio::spawn(end_lapsed_sessions(core.clone()));
    tokio::spawn(run_due(core.clone()));
    tokio::spawn(assign_the_rest(core.clone()));
}

async fn pass_on_effects(core: Arc<Core>, mut happened: UnboundedReceiver<Vec<Happened>>) {
    while let Some(happened) = happened.recv().await {
        let now = Instant::now();
        for Happened { namespace, effect } in &happened {
            match effect {
                Effect::SessionOpened { session_id, epoch, ttl_ms } => {
                    core.leases.opened(Key::new(namespace, session_id), *epoch, *ttl_ms, now);
                }
                Effect::SessionEnded { session_id } => core.leases.ended(&Key::new(namespace, session_id)),
                _ => {}
            }
        }
        core.hubs.announce(&happened);
    }
}

/// Notices when this node begins or ceases to lead, and when consensus itself has stopped.
async fn follow_office(core: Arc<Core>) {
    let mut metrics = core.raft.metrics();
    let mut leading = None;
    loop {
        let fatal = metrics.borrow_watched().running_state.clone().err();
        if let Some(fatal) = fatal {
            return core.stop.now(Reason::Fault(format!("consensus stopped: {fatal}")));
        }
        let term = match core.leadership() {
            Leadership::Here { term } => Some(term),
            Leadership::There { .. } | Leadership::Unknown => None,
        };
        if term != leading {
            leading = term;
            match term {
                Some(term) => take_office(&core, term).await,
                None => core.leases.follow(),
            }
        }
        if metrics.changed().await.is_err() {
            return core.stop.now(Reason::Fault("consensus is gone".to_owned()));
        }
    }
}

/// The deadlines of a new leader start only when it has applied all that earlier leaders committed: a session they
/// opened must not be missed, one they ended not revived.
async fn take_office(core: &Arc<Core>, term: u64) {
    tracing::info!(term, "this node leads");
    // Calls are served from now on: they must not be stamped by a clock that was set when the process began.
    core.clock.take_office(core.replica.read(|whole| whole.head.now_ms));
    if let Err(error) = core.reads.pass().await {
        tracing::debug!(%error, "office not confirmed yet");
    }
    core.replica.read(|whole| {
        core.clock.take_office(whole.head.now_ms);
        let sessions = whole.namespaces.iter().flat_map(|part| part.rooms.sessions.iter().map(|one| (&part.name, one)));
        core.leases.lead(term, sessions, Instant::now());
    });
    core.office.store(term, Ordering::Release);
    core.hubs.look_for_work();
    tokio::spawn(name_cluster(core.clone(), term));
}

/// The state itself says which cluster it is of, so that a copy of it cannot pass for another's.
async fn name_cluster(core: Arc<Core>, term: u64) {
    let cluster_id = core.settings.config.cluster_id.clone();
    match core.replica.read(|whole| cluster::get(whole.rows)) {
        Ok(Some(info)) if info.cluster_id == cluster_id => {}
        Ok(Some(info)) => {
            let fault = format!("the state is of cluster {:?}, this node of {cluster_id:?}", info.cluster_id);
            core.stop.now(Reason::Fault(fault));
        }
        Ok(None) => {
            let info = ClusterInfo { cluster_id, feature_level: level::understood(), retired_node_ids: Vec::new() };
            // If it fails, the next term's leader tries again.
            if let Err(error) =
                core.proposer.propose_as_leader(DEFAULT, command::Body::DescribeCluster(info), term).await
            {
                tracing::debug!(%error, "the cluster was not named yet");
            }
        }
        Err(fatal) => core.stop.now(Reason::Fault(fatal.to_string())),
    }
}

async fn end_lapsed_sessions(core: Arc<Core>) {
    loop {
        core.leases.next_deadline().await;
        let (term, lapsed) = core.leases.lapsed(leases::now(), LAPSED_PER_ROUND);
        let Some(term) = term else { continue };
        let expiries = lapsed.into_iter().map(|lapsed| end_session(&core, lapsed, term));
        futures::future::join_all(expiries).await;
    }
}

async fn end_session(core: &Core, lapsed: Lapsed, term: u64) {
    let Lapsed { key, epoch } = lapsed;
    tracing::info!(session = key.session_id, namespace = &*key.namespace, "session lapsed");
    let expire = command::Body::ExpireSession(ExpireSession { session_id: key.session_id.clone(), epoch });
    match core.proposer.propose_as_leader(&key.namespace, expire, term).await {
        // Ended already, by whatever way: nothing is left to expire.
        Ok(Answer { body: Some(answer::Body::Rejected(r)), .. }) if r.code() == RejectionCode::NotFound => {
            core.leases.ended_at(&key, epoch);
        }
        // Resumed meanwhile: its opening set a new deadline.
        Ok(_) => {}
        // It stays on the list and comes up again. While the outcome is unknown, nobody is told that it lives.
        Err(ProposeError::Unknown(error)) => tracing::debug!(error, "an expiry's outcome is unknown"),
        Err(error) => {
            tracing::debug!(%error, "an expiry was not proposed");
            core.leases.not_ended(&key, epoch);
        }
    }
}

/// Wakes with every applied entry, whatever that entry did: what makes something due earlier need not be worth telling
/// anybody else.
async fn run_due(core: Arc<Core>) {
    let mut revs = core.replica.revs();
    loop {
        // Before the look: what is applied after it wakes.
        revs.mark_unchanged();
        let due = core.replica.read(|whole| whole.namespaces.next_due_ms().map(|due| (due, whole.head.now_ms)));
        let (Some((due_ms, state_ms)), Some(term)) = (due, core.office()) else {
            tokio::select! {
                _ = revs.changed() => {}
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
            continue;
        };
        let now_ms = core.clock.now_ms().max(state_ms);
        if now_ms < due_ms {
            tokio::select! {
                _ = revs.changed() => {}
                () = tokio::time::sleep(Duration::from_millis((due_ms - now_ms).min(60_000))) => {}
            }
            continue;
        }
        if let Err(error) = core.proposer.propose_as_leader(DEFAULT, command::Body::Tick(Tick {}), term).await {
            tracing::debug!(%error, "a tick was not proposed");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// One command assigns only so much; a tick goes on with the rest. A new leader looks once, for its predecessor may not
/// have come to it.
async fn assign_the_rest(core: Arc<Core>) {
    loop {
        core.hubs.more_work().await;
        let Some(term) = core.office() else { continue };
        let has_work = core.replica.read(|whole| whole.namespaces.iter().any(|part| part.rooms.has_work_left()));
        if !has_work {
            continue;
        }
        if let Err(error) = core.proposer.propose_as_leader(DEFAULT, command::Body::Tick(Tick {}), term).await {
            tracing::debug!(%error, "a tick was not proposed");
            tokio::time::sleep(RETRY).await;
            core.hubs.look_for_work();
        }
    }
}
