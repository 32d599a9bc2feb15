//! Living sessions cost the log nothing; sessions that nobody keeps alive end.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use quorate_client::v1::{AgentFilter, AgentStatus, FindAgentsRequest, RegisterAgentRequest};
use quorate_jepsen::LocalCluster;
use quorate_jepsen::rng::env_u64;
use quorate_jepsen::until::until;

const TTL: Duration = Duration::from_secs(3);
const AGENTS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn keep_alives_leave_the_log_alone_and_silence_ends_sessions() -> Result<()> {
    let wanted = env_u64("QUORATE_SESSIONS", 2_000);
    let observed = Duration::from_secs(env_u64("QUORATE_SESSION_SECONDS", 6));
    let cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let sessions: Vec<_> = stream::iter(0..wanted)
        .map(|_| {
            let client = client.clone();
            async move { client.sessions().open(TTL).await }
        })
        .buffer_unordered(64)
        .try_collect()
        .await?;
    for (n, session) in sessions.iter().take(AGENTS).enumerate() {
        let request = RegisterAgentRequest {
            agent_id: format!("agent-{n}"),
            session_id: session.id().to_string(),
            agent_type: "tester".into(),
            capabilities: vec!["testing".into()],
            ..Default::default()
        };
        client.agents().register(session, request).await?;
    }
    cluster.wait_converged(Duration::from_secs(20)).await?;
    let leader = cluster.leader().await?;
    let before = cluster.status(leader).await?;
    ensure!(before.sessions == wanted, "{} sessions open instead of {wanted}", before.sessions);

    // The one place where time itself is the subject: longer than the TTL, so that only keep-alives can have helped.
    tokio::time::sleep(observed).await;
    let after = cluster.status(leader).await?;
    eprintln!(
        "{wanted} sessions over {observed:?}: last log index {} → {}",
        before.last_log_index, after.last_log_index
    );
    ensure!(after.role == "leader" && after.term == before.term, "the leader changed: the comparison says nothing");
    // The leader may say a few things of its own meanwhile; keep-alives would be thousands.
    let entered = after.last_log_index - before.last_log_index;
    ensure!(entered < wanted / 100, "{entered} entries: keep-alives entered the log");
    ensure!(after.sessions == wanted, "only {} of {wanted} sessions are left", after.sessions);
    ensure!(sessions.iter().all(|session| session.is_alive()), "a session believes that it has ended");

    drop(sessions);
    until("every session ends without keep-alives", TTL + Duration::from_secs(20), || async {
        Ok((cluster.status(leader).await?.sessions == 0).then_some(()))
    })
    .await?;
    let filter = AgentFilter { statuses: vec![AgentStatus::Unavailable as i32], ..Default::default() };
    let gone = client.agents().find(FindAgentsRequest { filter: Some(filter), ..Default::default() }).await?;
    let expected = AGENTS.min(usize::try_from(wanted)?);
    ensure!(gone.agents.len() == expected, "{} of {expected} agents are unavailable", gone.agents.len());
    cluster.close()
}
