//! Sessions that the library renews. While it says that one is held, its document must be there.
//!
//! Deliberately absent: the renewals. Nobody sees them; that there are none after `abandon` is what can be judged.

use std::time::{Duration, Instant};

use anyhow::Result;
use quorate_client::{Client, Session};
use serde_json::json;

use super::node::{self, Node};
use super::{WATCHED_TTLS, document, some_ttl, wait};
use crate::record::{Answer, Process};
use crate::rng::Rng;
use crate::workload::Context;

/// How long a call may take with all its retries.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks at the document.
const LOOK: Duration = Duration::from_millis(200);

/// One session after another, until told to stop.
pub(super) async fn keep(context: Context, worker: u64) -> Result<()> {
    let mut rng = context.rng((worker + 1) * 1_000 + 999);
    let (client, nodes) = (context.client(worker, PATIENCE)?, node::all(&context)?);
    let mut number = 0_u64;
    while context.pause(&mut rng).await {
        number += 1;
        let label = format!("{}-k{worker}.{number}", context.prefix);
        let (process, ttl) = (context.recorder.process(), some_ttl(&mut rng));
        let (context, nodes, rng) = (context.clone(), nodes.clone(), Rng::new(rng.next_u64()));
        Keeper { context, nodes, process, rng, label }.run(&client, ttl).await?;
    }
    Ok(())
}

struct Keeper {
    context: Context,
    nodes: Vec<Node>,
    process: Process,
    rng: Rng,
    /// Its key in the record.
    label: String,
}

impl Keeper {
    async fn run(mut self, client: &Client, ttl: Duration) -> Result<()> {
        let Some(session) = self.open(client, ttl).await else { return Ok(()) };
        self.put(client, &session).await;
        let until = Instant::now() + self.rng.millis(1_000, 15_000);
        while Instant::now() < until && session.is_alive() && wait(&self.context, LOOK).await {
            self.observe(Some(&session)).await?;
        }
        let is_closed = self.rng.below(2) == 0 && self.close(&session).await;
        if !is_closed {
            self.abandon(session).await;
        }
        let began = Instant::now();
        while began.elapsed() < ttl * WATCHED_TTLS && wait(&self.context, LOOK).await {
            if self.observe(None).await? == Some(false) {
                break;
            }
        }
        Ok(())
    }

    async fn open(&mut self, client: &Client, ttl: Duration) -> Option<Session> {
        let mut session = None;
        let call = async {
            match client.sessions().open(ttl).await {
                Ok(opened) => {
                    let answer = Answer::ok(json!({ "id": opened.id(), "epoch": opened.epoch() }));
                    session = Some(opened);
                    answer
                }
                Err(error) => Answer::of_error(&error),
            }
        };
        let arg = json!({ "ttl_ms": ttl.as_millis() as u64, "kept": true });
        self.process.run("open", &self.label, arg, None, call).await;
        session
    }

    async fn put(&mut self, client: &Client, session: &Session) {
        let put = client.kv().put(document(&self.context, &self.label), "here").session(session);
        let call = async {
            match put.send().await {
                Ok(put) => Answer::at(put.rev, json!({})),
                Err(error) => Answer::of_error(&error),
            }
        };
        let arg = json!({ "session": session.id() });
        self.process.run("put_ephemeral", &self.label, arg, None, call).await;
    }

    /// Looks at a node whether the document is there, and asks the library after that.
    async fn observe(&mut self, session: Option<&Session>) -> Result<Option<bool>> {
        let node = node::any(&self.nodes, &mut self.rng)?;
        let present = node.is_present(document(&self.context, &self.label));
        let call = async {
            let Some(present) = present.await else { return Answer::Fail };
            let is_held = session.is_some_and(Session::is_alive);
            Answer::ok(json!({ "present": present, "held": is_held }))
        };
        let answer = self.process.run("observe", &self.label, json!({}), Some(node.id), call).await;
        let Answer::Ok { res, .. } = answer else { return Ok(None) };
        Ok(res.get("present").and_then(serde_json::Value::as_bool))
    }

    /// `false`: it is not known to be closed. In any case nobody renews it any more.
    async fn close(&mut self, session: &Session) -> bool {
        let call = async {
            match session.close().await {
                Ok(()) => Answer::ok(json!({ "alive": true })),
                // It may have been closed by a delivery before the one that was refused.
                Err(_) => Answer::Info,
            }
        };
        let arg = json!({ "id": session.id() });
        let answer = self.process.run("close", &self.label, arg, None, call).await;
        matches!(answer, Answer::Ok { .. })
    }

    /// Lets go of it, as if it were forgotten: it ends by itself.
    async fn abandon(&mut self, session: Session) {
        let call = async move {
            drop(session);
            Answer::ok(json!({}))
        };
        self.process.run("abandon", &self.label, json!({}), None, call).await;
    }
}
