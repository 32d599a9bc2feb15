//! Members change under writes: three nodes become five, five become three others, a dead one is replaced. No call fails.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quorate_client::Client;
use quorate_client::v1::cluster_client::ClusterClient;
use quorate_client::v1::{ChangeMembersRequest, MembersStep, change_members_request};
use quorate_jepsen::coordination::only;
use quorate_jepsen::rng::env_u64;
use quorate_jepsen::until::until;
use quorate_jepsen::{LocalCluster, Steady, load};
use quorate_proto::peer::peer_client::PeerClient;
use quorate_proto::peer::{LogId, Vote, VoteRequest};
use tonic::{Code, Request, Status};

const LIMIT: Duration = Duration::from_secs(30);
const WRITERS: usize = 4;
/// Beyond anything that the cluster ever reaches.
const FAR: u64 = 1_000_000;

async fn voters_are(client: &Client, wanted: &[u64]) -> Result<()> {
    until(&format!("{wanted:?} vote"), LIMIT, || async {
        let mut status = client.cluster().status().await?;
        status.nodes.sort_by_key(|node| node.node_id);
        let voters: Vec<u64> = status.nodes.iter().filter(|node| node.voter).map(|node| node.node_id).collect();
        Ok((voters == wanted && status.nodes.len() == wanted.len()).then_some(()))
    })
    .await
}

/// Whether the node answers a candidate that has everything. A pre-vote changes nothing, whatever the answer.
async fn asked_for_a_vote(cluster: &LocalCluster, id: u64) -> Result<Result<(), Status>> {
    let vote = Some(Vote { term: FAR, node_id: 1, committed: false });
    let last_log_id = Some(LogId { term: FAR, index: FAR });
    let mut request = Request::new(VoteRequest { vote, last_log_id, leadership_transfer: false });
    request.metadata_mut().insert("quorate-cluster", "harness".parse()?);
    request.metadata_mut().insert("quorate-node", id.to_string().parse()?);
    let answer = PeerClient::new(only(&cluster.endpoint(id)?)?).pre_vote(request).await;
    Ok(answer.map(|_| ()))
}

/// It runs, knows the members, and has no say yet (ADR 6).
async fn has_no_say(cluster: &LocalCluster, id: u64, member: u64) -> Result<()> {
    let control = asked_for_a_vote(cluster, member).await?;
    ensure!(control.is_ok(), "a member does not even answer: {control:?}");
    let answer = asked_for_a_vote(cluster, id).await?;
    let refused = answer.as_ref().is_err_and(|status| status.code() == Code::Unavailable);
    ensure!(refused, "a node that has not caught up answered a candidate: {answer:?}");
    let identity = std::fs::read_to_string(cluster.data_dir(id)?.join("IDENTITY.toml"))?;
    ensure!(identity.contains("joined = false"), "it believes that it knows its cluster's log: {identity}");
    Ok(())
}

/// Adds a node that was only started, and waits until it is ready.
async fn grow(cluster: &mut LocalCluster, id: u64) -> Result<()> {
    cluster.add_process(id).await?;
    let member = cluster.leader().await?;
    has_no_say(cluster, id, member).await?;
    cluster.cli(&["cluster", "add", &cluster.member(id)?]).await?.succeeded()?;
    cluster.wait_ready(id).await
}

/// Removes a node, which goes on running until the cluster says that it is out.
async fn shrink(cluster: &mut LocalCluster, id: u64) -> Result<()> {
    cluster.cli(&["cluster", "remove", &id.to_string()]).await?.succeeded()?;
    cluster.forget(id)
}

/// The steps that the leader tells when it is asked to remove a node.
async fn steps_of_removal(cluster: &LocalCluster, id: u64) -> Result<Vec<MembersStep>> {
    let leader = cluster.leader().await?;
    let change = Some(change_members_request::Change::RemoveNodeId(id));
    let mut stub = ClusterClient::new(only(&cluster.endpoint(leader)?)?);
    let mut steps = stub.change_members(ChangeMembersRequest { change }).await?.into_inner();
    let mut told = Vec::new();
    while let Some(step) = steps.message().await? {
        told.push(step.step());
    }
    Ok(told)
}

/// A number that was used names a disk that may have been forgotten: nobody gets it again.
async fn numbers_are_never_used_again(cluster: &LocalCluster, client: &Client, retired: &[u64]) -> Result<()> {
    let status = client.cluster().status().await?;
    ensure!(status.retired_node_ids == retired, "retired are {:?}", status.retired_node_ids);
    let &number = retired.first().context("nobody is retired")?;
    let again = format!("{number}=127.0.0.1:1");
    let said = cluster.cli(&["cluster", "add", &again]).await?.refused()?;
    ensure!(said.contains("retired") || said.contains("used"), "refused for another reason: {said}");
    let told = steps_of_removal(cluster, number).await?;
    ensure!(told == [MembersStep::Done], "removing it once more gave {told:?}");
    Ok(())
}

/// Kills a node and puts another in its place.
async fn replace_the_dead(cluster: &mut LocalCluster, load: &Steady, old: u64, new: u64) -> Result<()> {
    cluster.kill(old)?;
    load.wait_success().await?;
    let began = Instant::now();
    cluster.add_process(new).await?;
    cluster.cli(&["cluster", "replace", &old.to_string(), &cluster.member(new)?]).await?.succeeded()?;
    cluster.forget(old)?;
    cluster.wait_ready(new).await?;
    let took = began.elapsed().as_millis();
    eprintln!("a dead node replaced in {took} ms, longest gap {:?}", load.longest_gap_since(began));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn members_change_under_writes_and_no_call_fails() -> Result<()> {
    let mib = env_u64("QUORATE_STATE_MIB", 8);
    // New nodes come by snapshot, and by the log from there.
    let flags = ["--snapshot-every", "500", "--log-keep", "200"];
    let mut cluster = LocalCluster::builder().extra_args(flags).start().await?;
    for id in 4..=6 {
        cluster.reserve(id)?;
    }
    let client = cluster.client()?;
    load::fill(&client, "state", mib).await?;
    eprintln!("a state of {mib} MiB");
    let load = Steady::start(&client, WRITERS, "members").await?;

    let began = Instant::now();
    for id in [4, 5] {
        grow(&mut cluster, id).await?;
    }
    voters_are(&client, &[1, 2, 3, 4, 5]).await?;
    eprintln!("3 to 5 nodes in {} ms, longest gap {:?}", began.elapsed().as_millis(), load.longest_gap_since(began));

    // The first one to go leads.
    if cluster.leader().await? != 1 {
        client.cluster().transfer_leader(1).await?;
    }
    until("node 1 leads", LIMIT, || async { Ok((cluster.leader_now().await == Some(1)).then_some(())) }).await?;
    let began = Instant::now();
    for id in [1, 2] {
        shrink(&mut cluster, id).await?;
        load.wait_success().await?;
    }
    voters_are(&client, &[3, 4, 5]).await?;
    eprintln!("5 to 3 nodes in {} ms, longest gap {:?}", began.elapsed().as_millis(), load.longest_gap_since(began));
    numbers_are_never_used_again(&cluster, &client, &[1, 2]).await?;

    replace_the_dead(&mut cluster, &load, 3, 6).await?;
    voters_are(&client, &[4, 5, 6]).await?;
    numbers_are_never_used_again(&cluster, &client, &[1, 2, 3]).await?;

    let outcome = load.stop().await?;
    eprintln!("{}", outcome.summary());
    outcome.check_none_failed()?;
    outcome.check_kept(&client).await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}
