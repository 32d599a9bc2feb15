//! Sessions renewed by hand: opened, renewed a few times, and then closed, forgotten, or taken up again when they are
//! about to end.
//!
//! Deliberately absent: a second session under the id of one of which nobody knows what became.

use std::time::{Duration, Instant};

use anyhow::Result;
use quorate_client::v1;
use serde_json::json;

use super::node::{self, Node};
use super::{WATCHED_TTLS, document, some_ttl, wait};
use crate::record::{Answer, Process};
use crate::rng::Rng;
use crate::workload::Context;
use crate::workload::direct::effect;

/// Between two looks at a document that should go.
const LOOK: Duration = Duration::from_millis(150);
/// How far from the end of a session it is taken up again, before and after.
const MARGIN_MS: u64 = 300;

/// One session after another, until told to stop.
pub(super) async fn live(context: Context, worker: u64, slot: u64) -> Result<()> {
    let mut rng = context.rng((worker + 1) * 1_000 + slot);
    let nodes = node::all(&context)?;
    let mut number = 0_u64;
    while context.pause(&mut rng).await {
        number += 1;
        let label = format!("{}-s{worker}.{slot}.{number}", context.prefix);
        let (process, ttl) = (context.recorder.process(), some_ttl(&mut rng));
        let (context, nodes, rng) = (context.clone(), nodes.clone(), Rng::new(rng.next_u64()));
        Life { context, nodes, process, rng, label, ttl, opened_at_ms: 0 }.run().await?;
    }
    Ok(())
}

struct Life {
    context: Context,
    nodes: Vec<Node>,
    process: Process,
    rng: Rng,
    /// Its key in the record, and its id.
    label: String,
    ttl: Duration,
    opened_at_ms: u64,
}

impl Life {
    async fn run(mut self) -> Result<()> {
        if !self.open().await? {
            return Ok(());
        }
        self.put().await?;
        let renewals = self.rng.below(6);
        for _ in 0..renewals {
            let ttl_ms = self.ttl_ms();
            let pause = self.rng.millis(ttl_ms / 4, ttl_ms / 2);
            if !wait(&self.context, pause).await || !self.renew().await? {
                return Ok(());
            }
            self.observe().await?;
        }
        match self.rng.below(4) {
            0 => self.close().await?,
            1 => self.resume().await?,
            _ => {}
        }
        self.watch().await
    }

    fn ttl_ms(&self) -> u64 {
        u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX)
    }

    async fn open(&mut self) -> Result<bool> {
        let node = node::any(&self.nodes, &mut self.rng)?;
        let (label, ttl) = (&self.label, self.ttl);
        let mut opened_at_ms = 0;
        let call = async {
            match node.open(label, ttl).await {
                Ok((v1::Session { id, epoch, opened_at_ms: at_ms, .. }, rev)) => {
                    opened_at_ms = at_ms;
                    Answer::at(rev, json!({ "id": id, "epoch": epoch }))
                }
                Err(status) => effect(&status),
            }
        };
        let arg = json!({ "ttl_ms": self.ttl_ms() });
        let answer = self.process.run("open", &self.label, arg, Some(node.id), call).await;
        self.opened_at_ms = opened_at_ms;
        Ok(matches!(answer, Answer::Ok { .. }))
    }

    async fn put(&mut self) -> Result<()> {
        let node = node::any(&self.nodes, &mut self.rng)?;
        let call = node.put(document(&self.context, &self.label), &self.label);
        let arg = json!({ "session": self.label });
        self.process.run("put_ephemeral", &self.label, arg, Some(node.id), call).await;
        Ok(())
    }

    /// `false`: it has ended. Without an answer it may live, and is renewed again.
    async fn renew(&mut self) -> Result<bool> {
        let node = node::any(&self.nodes, &mut self.rng)?;
        let call = node.keep_alive(&self.label);
        let arg = json!({ "id": self.label });
        let answer = self.process.run("keepalive", &self.label, arg, Some(node.id), call).await;
        Ok(answer != Answer::ok(json!({ "alive": false })))
    }

    async fn close(&mut self) -> Result<()> {
        let node = node::any(&self.nodes, &mut self.rng)?;
        let call = node.close(&self.label);
        let arg = json!({ "id": self.label });
        self.process.run("close", &self.label, arg, Some(node.id), call).await;
        Ok(())
    }

    /// Waits until the session is about to end, or has just ended, and opens it once more.
    async fn resume(&mut self) -> Result<()> {
        let ttl_ms = self.ttl_ms();
        let pause = self.rng.millis(ttl_ms.saturating_sub(MARGIN_MS), ttl_ms + MARGIN_MS);
        if !wait(&self.context, pause).await {
            return Ok(());
        }
        let node = node::any(&self.nodes, &mut self.rng)?;
        let (label, ttl, before) = (&self.label, self.ttl, self.opened_at_ms);
        let call = async {
            match node.open(label, ttl).await {
                Ok((session, rev)) => {
                    let same = session.opened_at_ms == before;
                    Answer::at(rev, json!({ "same": same, "epoch": session.epoch }))
                }
                Err(status) => effect(&status),
            }
        };
        let arg = json!({ "id": self.label });
        self.process.run("resume", &self.label, arg, Some(node.id), call).await;
        Ok(())
    }

    async fn observe(&mut self) -> Result<Option<bool>> {
        let node = node::any(&self.nodes, &mut self.rng)?;
        let present = node.is_present(document(&self.context, &self.label));
        let call = async {
            match present.await {
                Some(present) => Answer::ok(json!({ "present": present })),
                None => Answer::Fail,
            }
        };
        let answer = self.process.run("observe", &self.label, json!({}), Some(node.id), call).await;
        let Answer::Ok { res, .. } = answer else { return Ok(None) };
        Ok(res.get("present").and_then(serde_json::Value::as_bool))
    }

    /// Nobody renews it any more: looks until its document is gone, or for long enough.
    async fn watch(&mut self) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < self.ttl * WATCHED_TTLS && wait(&self.context, LOOK).await {
            if self.observe().await? == Some(false) {
                break;
            }
        }
        Ok(())
    }
}
