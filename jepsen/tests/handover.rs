//! The leader goes again and again, asked to or killed: how long clients wait, and that no call fails for it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use quorate_jepsen::rng::env_u64;
use quorate_jepsen::{LocalCluster, Steady, gaps};

const WRITERS: usize = 4;
/// Every election is well within this, on a busy machine too.
const LONGEST: Duration = Duration::from_secs(10);

/// How the leader goes.
#[derive(Clone, Copy, Debug)]
enum Exit {
    Asked,
    Killed,
}

/// The gaps that clients saw when the leader went `times` times.
async fn lose_leaders(cluster: &mut LocalCluster, load: &Steady, times: u64, exit: Exit) -> Result<Vec<Duration>> {
    let mut gaps = Vec::new();
    for _ in 0..times {
        let leader = cluster.leader().await?;
        let began = Instant::now();
        match exit {
            Exit::Asked => cluster.terminate(leader).await?,
            Exit::Killed => cluster.kill(leader)?,
        }
        load.wait_success().await?;
        gaps.push(load.longest_gap_since(began));
        cluster.restart(leader).await?;
    }
    Ok(gaps)
}

async fn run(times: u64, exit: Exit) -> Result<()> {
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let load = Steady::start(&client, WRITERS, "handover").await?;
    let gaps = lose_leaders(&mut cluster, &load, times, exit).await?;
    eprintln!("{times} leaders, {exit:?}: gaps {}", gaps::shown(&gaps));
    let outcome = load.stop().await?;
    eprintln!("{}", outcome.summary());
    ensure!(gaps.iter().all(|gap| *gap < LONGEST), "a gap was longer than {LONGEST:?}: {gaps:?}");
    outcome.check_none_failed()?;
    outcome.check_kept(&client).await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_asked_to_stop_hands_over_and_no_call_fails() -> Result<()> {
    run(env_u64("QUORATE_HANDOVERS", 5), Exit::Asked).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_killed_is_followed_by_another_and_nothing_is_lost() -> Result<()> {
    run(env_u64("QUORATE_KILLS", 3), Exit::Killed).await
}
