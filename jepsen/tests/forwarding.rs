//! Any node takes any call, and the loss of the node in use is the library's business, not the caller's.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quorate_client::{Client, Config};
use quorate_jepsen::until::until;
use quorate_jepsen::{Load, LocalCluster, tasks};
use quorate_proto::v1::agents_client::AgentsClient;
use quorate_proto::v1::sessions_client::SessionsClient;
use quorate_proto::v1::tasks_client::TasksClient;
use quorate_proto::v1::*;

/// The generated clients, not the library: that one would follow the hint and talk to the leader.
#[tokio::test(flavor = "multi_thread")]
async fn every_call_works_through_a_follower() -> Result<()> {
    let cluster = LocalCluster::builder().start().await?;
    let follower = *cluster.followers().await?.first().context("no follower")?;
    let address = format!("http://{}", cluster.endpoint(follower)?);
    let mut sessions = SessionsClient::connect(address.clone()).await?;
    let mut agents = AgentsClient::connect(address.clone()).await?;
    let mut queue = TasksClient::connect(address).await?;

    let open = OpenSessionRequest { ttl_ms: 10_000, ..Default::default() };
    let session_id = sessions.open(open).await?.into_inner().session.context("no session")?.id;
    sessions.keep_alive(KeepAliveRequest { session_id: session_id.clone() }).await?;
    let agent_id = String::from("agent");
    let register = RegisterAgentRequest {
        agent_id: agent_id.clone(),
        session_id: session_id.clone(),
        agent_type: "tester".into(),
        capabilities: vec!["work".into()],
        ..Default::default()
    };
    agents.register(register).await?;
    let report = ReportAgentRequest { agent_id: agent_id.clone(), health_permille: Some(900), ..Default::default() };
    agents.report(report).await?;
    let found = agents.find(FindAgentsRequest::default()).await?.into_inner().agents;
    ensure!(
        found.len() == 1 && found[0].health_permille == 900,
        "a read through the follower missed a write: {found:?}"
    );
    agents.get(GetAgentRequest { agent_id: agent_id.clone(), ..Default::default() }).await?;

    let specs = vec![tasks::spec("one", "work"), tasks::spec("two", "nobody")];
    queue.submit(SubmitTasksRequest { tasks: specs, ..Default::default() }).await?;
    let claim = ClaimTasksRequest {
        agent_id: agent_id.clone(),
        session_id: session_id.clone(),
        wait_ms: 5_000,
        ..Default::default()
    };
    let claimed = queue.claim(claim).await?.into_inner().tasks;
    let token = claimed.first().and_then(|task| task.claim.as_ref()).context("nothing claimed")?.token;
    let finish =
        FinishTaskRequest { task_id: "one".into(), token, kind: FinishKind::Completed as i32, ..Default::default() };
    queue.finish(finish).await?;
    queue.cancel(CancelTaskRequest { task_id: "two".into(), reason: "test".into(), ..Default::default() }).await?;
    let one = queue.get(GetTaskRequest { task_id: "one".into(), ..Default::default() }).await?.into_inner().task;
    ensure!(one.is_some_and(|task| task.status == TaskStatus::Completed as i32), "the finish is not visible");
    ensure!(queue.list(ListTasksRequest::default()).await?.into_inner().tasks.len() == 2, "list misses tasks");
    let attempts = ListAttemptsRequest { task_id: "one".into(), ..Default::default() };
    ensure!(queue.attempts(attempts).await?.into_inner().attempts.len() == 1, "attempts misses one");
    let stats = queue.stats(TaskStatsRequest::default()).await?.into_inner();
    ensure!(stats.completed == 1 && stats.cancelled == 1, "stats are off: {stats:?}");

    agents.drain(DrainAgentRequest { agent_id: agent_id.clone(), request: None }).await?;
    sessions.close(CloseSessionRequest { session_id }).await?;
    cluster.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn next_call_succeeds_after_the_contacted_node_is_killed() -> Result<()> {
    let mut cluster = LocalCluster::builder().start().await?;
    let follower = *cluster.followers().await?.first().context("no follower")?;
    // The follower first in the list: it is the one that a fresh client contacts.
    let mut endpoints = vec![cluster.endpoint(follower)?];
    endpoints.extend(cluster.endpoints().into_iter().filter(|endpoint| *endpoint != endpoints[0]).collect::<Vec<_>>());
    let client = Client::connect(Config::new(endpoints))?;
    client.tasks().submit_one(tasks::spec("before", "work")).await?;
    cluster.kill(follower)?;
    client.tasks().submit_one(tasks::spec("after-follower", "work")).await?;
    cluster.restart(follower).await?;
    let leader = cluster.leader().await?;
    cluster.kill(leader)?;
    client.tasks().submit_one(tasks::spec("after-leader", "work")).await?;
    ensure!(tasks::all(&client).await?.len() == 3, "not every task is there");
    cluster.restart(leader).await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_hands_leadership_over_without_a_failed_call() -> Result<()> {
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let load = Load::start(&client, 4, "load", 64);
    let leader = cluster.leader().await?;
    let asked = Instant::now();
    cluster.request_stop(leader)?;
    let next =
        until("a new leader", Duration::from_secs(5), || async { Ok(cluster.leader_except(leader).await) }).await?;
    let took = asked.elapsed();
    cluster.terminate(leader).await?;
    let gone = asked.elapsed();
    eprintln!("node {next} leads after {} ms, node {leader} was gone after {} ms", took.as_millis(), gone.as_millis());
    let written = load.stop().await?;
    ensure!(took < Duration::from_secs(2), "a new leader took {} ms", took.as_millis());
    ensure!(
        written.refused.is_empty() && written.unanswered.is_empty(),
        "{:?} {:?}",
        written.refused,
        written.unanswered
    );
    cluster.restart(leader).await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}
