//! Unique ids: whatever the cluster hands out that must be new and rising.
//!
//! The rev of a write, the token of a lock and the epoch of a session are all places in one log, so all of them are
//! held against each other, as one kind.
//!
//! Deliberately absent: ids that clients draw.

use std::time::Duration;

use anyhow::Result;
use futures::future::BoxFuture;
use quorate_client::{Client, Error, Session};
use serde_json::json;

use super::{Context, Workload};
use crate::check::Checker;
use crate::check::ids::Ids as Judge;
use crate::record::{Answer, Process};
use crate::rng::Rng;

const PATIENCE: Duration = Duration::from_secs(2);
const LAST_PATIENCE: Duration = Duration::from_secs(30);
const LEASE: Duration = Duration::from_secs(30);
/// Of a session that is opened for its epoch alone, should nobody get to close it.
const SHORT_LEASE: Duration = Duration::from_secs(3);
/// What histories call the one kind.
const KEY: &str = "ids";

/// The workload.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ids;

impl Ids {
    /// The workload.
    pub fn new() -> Self {
        Self
    }
}

impl Workload for Ids {
    fn name(&self) -> &'static str {
        "ids"
    }

    fn about(&self) -> &'static str {
        "revs, tokens and epochs: each is handed out once, and later ones are larger"
    }

    fn work(&self, context: Context, worker: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { Worker::new(context, worker)?.run().await })
    }

    /// One more, which is larger than all that anybody was told of.
    fn finish(&self, context: Context) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let client = context.client(0, LAST_PATIENCE)?;
            let key = format!("{}/ids/last", context.prefix);
            let asking = async { answer(rev(&client, &key, "last", None).await) };
            let last = context.recorder.process().run("next", KEY, json!({}), None, asking).await;
            anyhow::ensure!(matches!(last, Answer::Ok { .. }), "no id was to be had after the end");
            Ok(())
        })
    }

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        vec![Box::new(Judge::new())]
    }
}

struct Worker {
    context: Context,
    number: u64,
    rng: Rng,
    process: Process,
    client: Client,
    session: Option<Session>,
}

impl Worker {
    fn new(context: Context, number: u64) -> Result<Self> {
        let (rng, process) = (context.rng(number), context.recorder.process());
        let client = context.client(number, PATIENCE)?;
        Ok(Self { context, number, rng, process, client, session: None })
    }

    async fn run(mut self) -> Result<()> {
        let prefix = format!("{}/ids", self.context.prefix);
        while self.context.pause(&mut self.rng).await {
            if !self.session.as_ref().is_some_and(Session::is_alive) {
                self.session = self.client.sessions().open(LEASE).await.ok();
            }
            let Self { rng, process, client, session, number, .. } = &mut self;
            let source = rng.below(8);
            let (client, session) = (&*client, session.as_ref());
            let asking = async {
                answer(match (source, session) {
                    (0, _) => epoch(client).await,
                    (1 | 2, Some(session)) => token(client, session, &format!("{prefix}/{number}")).await,
                    (_, session) => rev(client, &format!("{prefix}/{}", source % 4), "v", session).await,
                })
            };
            process.run("next", KEY, json!({}), None, asking).await;
        }
        Ok(())
    }
}

fn answer(id: Result<u64, Error>) -> Answer {
    match id {
        Ok(id) => Answer::at(id, json!({ "id": id })),
        Err(error) => Answer::of_error(&error),
    }
}

/// The rev of a write.
async fn rev(client: &Client, key: &str, value: &'static str, session: Option<&Session>) -> Result<u64, Error> {
    let put = client.kv().put(key, value);
    let put = if let Some(session) = session { put.request(session) } else { put };
    Ok(put.send().await?.rev)
}

/// The token of a lock that nobody else wants.
async fn token(client: &Client, session: &Session, name: &str) -> Result<u64, Error> {
    let guard = client.locks().lock(session, name).acquire().await?;
    let token = guard.token();
    // Whether it was given back in time is nothing to do with its token.
    let _ = guard.release().await;
    Ok(token)
}

/// The epoch of a new session.
async fn epoch(client: &Client) -> Result<u64, Error> {
    let session = client.sessions().open(SHORT_LEASE).await?;
    let epoch = session.epoch();
    // It ends by itself if this does not end it.
    let _ = session.close().await;
    Ok(epoch)
}
