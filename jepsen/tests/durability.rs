//! kill -9 of all three nodes while writers run: what was acknowledged is there afterwards, and nothing else appeared.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use quorate_jepsen::rng::{Rng, env_u64, seed};
use quorate_jepsen::{Load, LocalCluster, tasks};

const WRITERS: usize = 8;
/// Enough to exercise the single read beside the list, few enough to stay quick.
const READ_ONE_BY_ONE: usize = 500;

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_tasks_survive_the_loss_of_all_nodes() -> Result<()> {
    let rounds = env_u64("QUORATE_KILL_ROUNDS", 20);
    let mut rng = Rng::new(seed());
    let mut cluster = LocalCluster::builder().start().await?;
    let client = cluster.client()?;
    let load = Load::start(&client, WRITERS, "task", 64);
    for round in 1..=rounds {
        tokio::time::sleep(rng.millis(100, 600)).await;
        cluster.kill_all()?;
        cluster.start_all().await?;
        eprintln!("round {round} of {rounds}: all nodes killed and ready again");
    }
    let written = load.stop().await?;
    eprintln!("{} acknowledged of {} attempted", written.acked.len(), written.attempted.len());
    ensure!(written.refused.is_empty(), "refused without reason: {:?}", written.refused);
    ensure!(!written.acked.is_empty(), "nothing was ever acknowledged");

    let present: BTreeSet<String> = tasks::all(&client).await?.into_iter().map(|task| task.id).collect();
    let lost: Vec<_> = written.acked.difference(&present).collect();
    ensure!(lost.is_empty(), "{} acknowledged tasks are gone: {lost:?}", lost.len());
    let invented: Vec<_> = present.difference(&written.attempted).collect();
    ensure!(invented.is_empty(), "{} tasks that nobody sent: {invented:?}", invented.len());

    let step = (written.acked.len() / READ_ONE_BY_ONE).max(1);
    stream::iter(written.acked.iter().step_by(step).cloned())
        .map(|id| {
            let client = client.clone();
            async move {
                let found = client.tasks().get(&id).await?;
                ensure!(found.task.is_some_and(|task| task.id == id), "get of {id} gave something else");
                anyhow::Ok(())
            }
        })
        .buffer_unordered(16)
        .try_collect::<Vec<()>>()
        .await?;
    cluster.wait_converged(Duration::from_secs(30)).await?;
    cluster.check_replicas_equal().await?;
    cluster.close()
}
