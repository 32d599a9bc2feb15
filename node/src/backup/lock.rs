//! One writer at a time in a target: `LOCK.json` says who, and until when.
//!
//! The holder renews it while it works. One that died leaves it behind, and it is taken over once it has lapsed by
//! [`MARGIN`]: **the clocks of those who write to one target must not differ by more than that**. A holder that could
//! not renew it within [`TERM`] gives up by itself, by a clock that does not jump, long before anybody takes over.
//!
//! Not every store replaces an object only if it is unchanged, but all can create one only if there is none. So who
//! takes over creates `LOCK.<nonce>.json`, after the holder that lapsed, and looks again before it replaces the lock: of
//! two that saw the same one lapse, one has the claim, and the other finds another holder when it looks.
//!
//! Deliberately absent: readers. What a manifest names stays, and a manifest that goes while it is read is an error to
//! them.

use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

use super::target::Target;
use super::wall_ms;

const LOCK: &str = "LOCK.json";
/// How long a holder may work without having renewed it.
const TERM: Duration = Duration::from_secs(120);
const RENEW: Duration = Duration::from_secs(30);
/// How long after it has lapsed it is taken over.
const MARGIN: Duration = Duration::from_secs(600);
/// How long giving it back may take: it lapses anyway.
const RELEASE: Duration = Duration::from_secs(10);
/// Others come and go between two looks; not for ever.
const ATTEMPTS: usize = 3;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    /// No two are equal.
    nonce: String,
    /// For people.
    who: String,
    until_ms: u64,
}

impl Holder {
    fn new(who: &str, now_ms: u64) -> Self {
        let nonce = uuid::Uuid::new_v4().simple().to_string();
        Holder { nonce, who: who.to_owned(), until_ms: 0 }.until(now_ms)
    }

    fn until(self, now_ms: u64) -> Self {
        Holder { until_ms: now_ms + millis(TERM), ..self }
    }

    fn lapsed(&self, now_ms: u64) -> bool {
        now_ms > self.until_ms.saturating_add(millis(MARGIN))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Does the work while holding the lock; ends it if the lock is lost. Work that may be called off must end by itself:
/// if this is dropped, the lock stays until it lapses.
pub(super) async fn holding<T>(
    target: &Target,
    who: &str,
    work: impl Future<Output = anyhow::Result<T>> + Send,
) -> anyhow::Result<T> {
    let mine = Holder::new(who, wall_ms());
    take(target, &mine, wall_ms()).await?;
    let result = tokio::select! {
        result = work => result,
        lost = keep(target, &mine) => Err(lost),
    };
    match timeout(RELEASE, release(target, &mine)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(error = format!("{error:#}"), "the lock of the backups was not given back"),
        Err(_) => tracing::warn!("the lock of the backups was not given back in time"),
    }
    result
}

async fn take(target: &Target, mine: &Holder, now_ms: u64) -> anyhow::Result<()> {
    for _ in 0..ATTEMPTS {
        // Not every store keeps its word that it makes only what is not there: whoever finds its own name last has the lock.
        if target.create(LOCK, encoded(mine)?).await?
            && holder(target, LOCK).await?.is_some_and(|held| held.nonce == mine.nonce)
        {
            return Ok(());
        }
        let Some(held) = holder(target, LOCK).await? else { continue };
        // A creation that was repeated on the way finds itself.
        if held.nonce == mine.nonce {
            return Ok(());
        }
        ensure!(held.lapsed(now_ms), "{} is writing to {}: try again when it is done", held.who, target.url());
        if take_over(target, &held, mine, now_ms).await? {
            tracing::warn!(from = held.who, "took over the lock of the backups, which had lapsed");
            return Ok(());
        }
    }
    bail!("others are writing to {}: try again when they are done", target.url())
}

/// Says whether it did; if not, things have changed and are worth another look.
async fn take_over(target: &Target, held: &Holder, mine: &Holder, now_ms: u64) -> anyhow::Result<bool> {
    ensure!(held.nonce.bytes().all(|b| b.is_ascii_alphanumeric()), "{LOCK} of {} is damaged", target.url());
    let claim = format!("LOCK.{}.json", held.nonce);
    if !target.create(&claim, encoded(mine)?).await? {
        match holder(target, &claim).await? {
            // Whoever claimed it died over it.
            Some(other) if other.lapsed(now_ms) => target.remove(vec![claim]).await?,
            Some(other) if other.nonce != mine.nonce => {
                bail!("{} is about to write to {}: try again when it is done", other.who, target.url())
            }
            _ => {}
        }
        return Ok(false);
    }
    let unchanged = holder(target, LOCK).await?.as_ref() == Some(held);
    if unchanged {
        target.write(LOCK, encoded(mine)?).await?;
    }
    target.remove(vec![claim]).await?;
    Ok(unchanged)
}

/// Renews the lock for as long as that succeeds; returns why it does not any more.
async fn keep(target: &Target, mine: &Holder) -> anyhow::Error {
    let mut renewed = Instant::now();
    loop {
        sleep(RENEW).await;
        let asked = Instant::now();
        let reason = match timeout(RENEW, renew(target, mine)).await {
            Ok(Ok(true)) => {
                renewed = asked;
                continue;
            }
            Ok(Ok(false)) => return anyhow!("the lock of {} was taken over by another", target.url()),
            Ok(Err(error)) => error,
            Err(_) => anyhow!("no answer within {RENEW:?}"),
        };
        if renewed.elapsed() + RENEW * 2 > TERM {
            return reason.context(format!("the lock of {} could not be renewed", target.url()));
        }
    }
}

/// Whether it is ours still.
async fn renew(target: &Target, mine: &Holder) -> anyhow::Result<bool> {
    if holder(target, LOCK).await?.is_none_or(|held| held.nonce != mine.nonce) {
        return Ok(false);
    }
    target.write(LOCK, encoded(&mine.clone().until(wall_ms()))?).await?;
    Ok(true)
}

async fn release(target: &Target, mine: &Holder) -> anyhow::Result<()> {
    if holder(target, LOCK).await?.is_some_and(|held| held.nonce == mine.nonce) {
        target.remove(vec![LOCK.to_owned()]).await?;
    }
    Ok(())
}

async fn holder(target: &Target, path: &str) -> anyhow::Result<Option<Holder>> {
    let Some(content) = target.read(path).await? else { return Ok(None) };
    let unreadable = || format!("{} cannot be read; remove it if nobody writes there", target.shown(path));
    serde_json::from_slice(&content).map(Some).with_context(unreadable)
}

fn encoded(holder: &Holder) -> anyhow::Result<bytes::Bytes> {
    Ok(serde_json::to_vec(holder)?.into())
}

#[cfg(test)]
mod tests {
    use super::super::testing::target;
    use super::*;

    #[tokio::test]
    async fn one_holds_it_at_a_time_and_gives_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let target = target(dir.path());
        let inner = target.clone();
        holding(&target, "node 1", async move {
            let error = holding(&inner, "node 2", async { Ok(()) }).await.unwrap_err();
            assert!(error.to_string().starts_with("node 1 is writing to file://"), "{error}");
            Ok(())
        })
        .await
        .unwrap();
        holding(&target, "node 2", async { Ok(()) }).await.unwrap();
        let failed = holding(&target, "node 3", async { anyhow::Result::<()>::Err(anyhow!("no")) }).await;
        assert_eq!(failed.unwrap_err().to_string(), "no");
        assert!(holder(&target, LOCK).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn one_that_died_is_taken_over_once_it_has_lapsed_by_the_margin() {
        let dir = tempfile::tempdir().unwrap();
        let target = target(dir.path());
        let (dead, next, later) = (Holder::new("dead", 0), Holder::new("next", 0), Holder::new("later", 0));
        take(&target, &dead, 0).await.unwrap();
        let edge = millis(TERM) + millis(MARGIN);
        assert!(take(&target, &next, edge).await.unwrap_err().to_string().contains("dead is writing"));
        let next = next.until(edge + 1);
        take(&target, &next, edge + 1).await.unwrap();
        assert!(!renew(&target, &dead).await.unwrap(), "the dead one is back, and is told");
        assert!(take(&target, &later, edge + 1).await.unwrap_err().to_string().contains("next is writing"));
        // One that saw the dead one's lock, and was slow, has no luck with it.
        assert!(!take_over(&target, &dead, &later, edge + 1).await.unwrap());
        assert_eq!(holder(&target, LOCK).await.unwrap().unwrap(), next);
        assert_eq!(target.list("").await.unwrap().len(), 1, "no claim is left");
    }

    #[tokio::test]
    async fn a_claim_that_was_left_behind_does_not_stay_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let target = target(dir.path());
        let (dead, claimant) = (Holder::new("dead", 0), Holder::new("claimant", 0));
        take(&target, &dead, 0).await.unwrap();
        assert!(target.create(&format!("LOCK.{}.json", dead.nonce), encoded(&claimant).unwrap()).await.unwrap());
        let now_ms = 2 * (millis(TERM) + millis(MARGIN));
        let mine = Holder::new("mine", now_ms);
        take(&target, &mine, now_ms).await.unwrap();
        assert_eq!(holder(&target, LOCK).await.unwrap().unwrap(), mine);
    }
}
