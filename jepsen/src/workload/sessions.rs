//! Sessions of a few seconds, each with an ephemeral document that is there as long as the session: kept alive and then
//! closed, forgotten, or taken up again at the last moment.
//!
//! - `life`: sessions renewed by single calls at single nodes, every renewal recorded. `kept`: sessions that the
//!   library renews, which must not be lost while it says that they are held.
//! - `census`: lists of all documents, at one node after another. `node`: the calls.
//!
//! Deliberately absent: judgement; see [`crate::check::leases`], which also says what the operations look like.

mod census;
mod kept;
mod life;
mod node;

use std::time::Duration;

use anyhow::Result;
use futures::future::{BoxFuture, try_join4};

use super::{Context, Workload};
use crate::check::Checker;
use crate::coordination::told;
use crate::rng::Rng;

/// Between a session's last renewal and the last look at its document, at most this many TTLs.
const WATCHED_TTLS: u32 = 4;

/// The workload of sessions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sessions;

impl Sessions {
    /// There is one kind.
    pub fn new() -> Self {
        Self
    }
}

impl Workload for Sessions {
    fn name(&self) -> &'static str {
        "sessions"
    }

    fn about(&self) -> &'static str {
        "sessions of a few seconds, kept, closed, forgotten and taken up again: none ends early, none lives on"
    }

    fn work(&self, context: Context, worker: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            try_join4(
                census::count(context.clone(), worker),
                life::live(context.clone(), worker, 0),
                life::live(context.clone(), worker, 1),
                kept::keep(context.clone(), worker),
            )
            .await?;
            Ok(())
        })
    }

    fn finish(&self, context: Context) -> BoxFuture<'_, Result<()>> {
        Box::pin(census::finish(context))
    }

    fn checkers(&self) -> Vec<Box<dyn Checker>> {
        vec![Box::new(crate::check::leases::Leases::new())]
    }
}

/// What the keys of all documents begin with.
fn documents(context: &Context) -> String {
    format!("{}/leases/", context.prefix)
}

/// The key of a session's document.
fn document(context: &Context, label: &str) -> String {
    format!("{}{label}", documents(context))
}

/// A time to live.
fn some_ttl(rng: &mut Rng) -> Duration {
    Duration::from_secs(2 + rng.below(5))
}

/// Waits. `false`: it is time to stop.
async fn wait(context: &Context, time: Duration) -> bool {
    let mut stop = context.stop.clone();
    tokio::select! {
        biased;
        () = told(&mut stop) => false,
        () = tokio::time::sleep(time) => true,
    }
}
