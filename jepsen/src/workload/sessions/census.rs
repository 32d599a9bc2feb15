//! Which documents are there: asked of one node after another as long as anybody opens sessions, and then until all are
//! gone.
//!
//! Deliberately absent: what should be there.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::json;

use super::documents;
use super::node::{self, Node};
use crate::record::{Answer, Process};
use crate::workload::Context;

/// When everything is healed and nobody renews anything, all sessions end within this time.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Looks until told to stop.
pub(super) async fn count(context: Context, worker: u64) -> Result<()> {
    let (nodes, mut rng) = (node::all(&context)?, context.rng(worker));
    let mut process = context.recorder.process();
    while context.pause(&mut rng).await {
        let node = node::any(&nodes, &mut rng)?;
        look(&mut process, &node, &context).await;
    }
    Ok(())
}

/// Looks until nothing is there.
pub(super) async fn finish(context: Context) -> Result<()> {
    let (nodes, mut rng) = (node::all(&context)?, context.rng(0));
    let mut process = context.recorder.process();
    let began = Instant::now();
    loop {
        let node = node::any(&nodes, &mut rng)?;
        let answer = look(&mut process, &node, &context).await;
        let is_empty = |res: &serde_json::Value| res.get("keys").is_some_and(|keys| *keys == json!([]));
        if matches!(&answer, Answer::Ok { res, .. } if is_empty(res)) {
            return Ok(());
        }
        if began.elapsed() > LIMIT {
            bail!("the sessions could not be drained: after {LIMIT:?} there is {answer:?}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look(process: &mut Process, node: &Node, context: &Context) -> Answer {
    let prefix = documents(context);
    let call = async {
        match node.present(&prefix).await {
            Some(keys) => Answer::ok(json!({ "keys": keys })),
            None => Answer::Fail,
        }
    };
    process.run("list", &context.prefix, json!({}), Some(node.id), call).await
}
