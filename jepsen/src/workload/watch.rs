//! Watch: writers of a few documents, and watchers at every node.
//!
//! | operation | asked | answered |
//! |---|---|---|
//! | `put` | `value` | `version` |
//! | `del` | | `version`: 0; `deleted`: whether there was one |
//! | `watched` | `watcher`, `from` (0: now) | `rev`, `events` with `rev`, `key`, `value` (null: removed); or `compacted` |
//! | `history` | | `from`, `events`: all that is kept |
//!
//! The key of `watched` is what is watched: one document, or what ends in `/` and stands for all that begin so.
//!
//! Nothing is remembered but by the record: in the end every watcher that it knows is taken up where it stopped.
//!
//! Deliberately absent: any judgement, see [`crate::check::watch`].

mod history;
mod watcher;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use futures::future::{BoxFuture, try_join};
use quorate_client::Client;
use serde_json::json;

use super::{Context, Workload};
use crate::check::{self, Checker};
use crate::record::{Answer, Process};
use crate::rng::Rng;

/// Less than an election: many writes end without an answer.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// Few: each is written and removed many times.
const KEYS: u64 = 6;
/// One write in so many is a removal.
const DELETE_EVERY: u64 = 5;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch;

impl Watch {
    /// The workload.
    pub fn new() -> Self {
        Self
    }
}

impl Workload for Watch {
    fn name(&self) -> &'static str {
        "watch"
    }

    fn about(&self) -> &'static str {
        "writers, and watchers at every node that begin late, stop and go on: no gap, no repetition, no other order"
    }

    fn work(&self, context: Context, worker: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let newest = AtomicU64::new(0);
            try_join(write(&context, worker, &newest), watcher::watch(&context, worker, &newest)).await?;
            Ok(())
        })
    }

    fn finish(&self, context: Context) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            watcher::catch_up(&context).await?;
            history::read(&context).await
        })
    }

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        vec![Box::new(check::watch::Watch::new())]
    }
}

/// What all documents of the run begin with.
fn all(context: &Context) -> String {
    format!("{}/watch/", context.prefix)
}

/// One of the documents.
fn document(context: &Context, rng: &mut Rng) -> String {
    format!("{}{}", all(context), rng.below(KEYS))
}

/// Writes until told to stop. `newest`: the rev of the last write that was acknowledged here.
async fn write(context: &Context, worker: u64, newest: &AtomicU64) -> Result<()> {
    let client = context.client(worker, PATIENCE)?;
    let mut process = context.recorder.process();
    let mut rng = context.rng(worker);
    let mut n = 0_u64;
    while context.pause(&mut rng).await {
        n += 1;
        let key = document(context, &mut rng);
        let answer = if rng.below(DELETE_EVERY) == 0 {
            delete(&client, &mut process, &key).await
        } else {
            put(&client, &mut process, &key, format!("{worker}.{n}")).await
        };
        if let Answer::Ok { rev: Some(rev), .. } = answer {
            newest.fetch_max(rev, Ordering::Relaxed);
        }
    }
    Ok(())
}

async fn put(client: &Client, process: &mut Process, key: &str, value: String) -> Answer {
    let arg = json!({"value": value});
    let call = async {
        match client.kv().put(key, value).send().await {
            Ok(put) => Answer::at(put.rev, json!({"version": put.entry.map_or(0, |entry| entry.version)})),
            Err(error) => Answer::of_error(&error),
        }
    };
    process.run("put", key, arg, None, call).await
}

async fn delete(client: &Client, process: &mut Process, key: &str) -> Answer {
    let call = async {
        match client.kv().delete(key).send().await {
            Ok(gone) => Answer::at(gone.rev, json!({"version": 0, "deleted": gone.deleted})),
            Err(error) => Answer::of_error(&error),
        }
    };
    process.run("del", key, json!({}), None, call).await
}
