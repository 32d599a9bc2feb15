//! Writers that submit tasks without pause and remember what was tried and what was acknowledged.
//!
//! What must hold afterwards: acknowledged ⊆ present ⊆ attempted. A call without an answer may have taken effect or not.
//!
//! [`fill`] makes a state of some size, for what depends on that.
//!
//! Deliberately absent: reads, and retries beyond the client library's own.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use futures::stream::{self, StreamExt, TryStreamExt};
use quorate_client::{Client, Error};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::rng::Rng;
use crate::tasks;

/// Of each document that makes up the size of a state.
const DOCUMENT_BYTES: usize = 256 << 10;
const DOCUMENTS_AT_ONCE: usize = 4;
/// After a call that got no answer: long enough not to spin, short enough to be there when the cluster returns.
const PAUSE: Duration = Duration::from_millis(10);

/// Running writers.
#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<bool>,
    writers: Vec<JoinHandle<Written>>,
}

/// What the writers know.
#[derive(Debug, Default)]
pub struct Written {
    /// Every task id that was ever sent.
    pub attempted: BTreeSet<String>,
    /// Those the cluster confirmed.
    pub acked: BTreeSet<String>,
    /// Calls without an answer: unavailable, or outcome unknown.
    pub unanswered: Vec<String>,
    /// Refusals; there is no reason for any.
    pub refused: Vec<String>,
}

impl Load {
    /// Starts `writers` tasks. Task ids are `<prefix>-<writer>-<n>`, payloads have `payload_bytes` bytes.
    pub fn start(client: &Client, writers: usize, prefix: &str, payload_bytes: usize) -> Self {
        let (stop, stopped) = watch::channel(false);
        let writers = (0..writers)
            .map(|writer| {
                let prefix = format!("{prefix}-{writer}");
                tokio::spawn(write(client.clone(), prefix, payload_bytes, stopped.clone()))
            })
            .collect();
        Self { stop, writers }
    }

    /// Lets every writer end its call, and gives what they know together.
    pub async fn stop(self) -> Result<Written> {
        self.stop.send_replace(true);
        let mut all = Written::default();
        for writer in self.writers {
            let one = writer.await?;
            all.attempted.extend(one.attempted);
            all.acked.extend(one.acked);
            all.unanswered.extend(one.unanswered);
            all.refused.extend(one.refused);
        }
        Ok(all)
    }
}

async fn write(client: Client, prefix: String, payload_bytes: usize, stopped: watch::Receiver<bool>) -> Written {
    let mut written = Written::default();
    let mut n = 0_u64;
    while !*stopped.borrow() {
        n += 1;
        let id = format!("{prefix}-{n}");
        let mut spec = tasks::spec(&id, "nobody");
        spec.payload = vec![b'x'; payload_bytes].into();
        written.attempted.insert(id.clone());
        match client.tasks().submit_one(spec).await {
            Ok(_) => {
                written.acked.insert(id);
            }
            Err(error @ (Error::Unavailable { .. } | Error::OutcomeUnknown { .. })) => {
                written.unanswered.push(format!("{id}: {error}"));
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => {
                written.refused.push(format!("{id}: {error}"));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    written
}

/// Writes documents of `mib` MiB together, whose content does not compress.
pub async fn fill(client: &Client, prefix: &str, mib: u64) -> Result<()> {
    let documents = (mib << 20) / DOCUMENT_BYTES as u64;
    stream::iter(0..documents)
        .map(|n| async move {
            let value = noise(&mut Rng::new(n), DOCUMENT_BYTES);
            client.kv().put(format!("{prefix}/{n}"), value).send().await?;
            anyhow::Ok(())
        })
        .buffer_unordered(DOCUMENTS_AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(())
}

/// So many bytes that no compression makes smaller.
pub fn noise(rng: &mut Rng, bytes: usize) -> Vec<u8> {
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        noise.extend(rng.next_u64().to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}
