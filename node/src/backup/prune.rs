//! The old backups go, and then the objects that no other names.
//!
//! In this order, and under the target's lock: whatever happens in between, a manifest never names what is gone, and
//! nobody is about to name what goes. What was left behind in between goes with the next prune.
//!
//! Invariant: the newest backups of each cluster stay, whatever their age: a cluster that has been down for a year has
//! nothing else.

use std::collections::{BTreeMap, BTreeSet};

use super::lock;
use super::manifest::{self, Manifest, path_of};
use super::target::{Target, object_path};

/// How many stay of each cluster in any case.
pub(crate) const KEEP_NEWEST: usize = 1;

/// What went.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Pruned {
    /// Their names, oldest first.
    pub(crate) backups: Vec<String>,
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
    /// How many backups are left.
    pub(crate) kept: usize,
}

/// Removes backups that were taken longer than `keep_ms` ago, and what only they named.
pub(crate) async fn prune(
    target: &Target,
    who: &str,
    keep_ms: u64,
    now_ms: u64,
    keep_newest: usize,
) -> anyhow::Result<Pruned> {
    lock::holding(target, who, remove(target, keep_ms, now_ms, keep_newest)).await
}

async fn remove(target: &Target, keep_ms: u64, now_ms: u64, keep_newest: usize) -> anyhow::Result<Pruned> {
    let manifests = manifest::list(target).await?;
    let gone = outdated(&manifests, keep_ms, now_ms, keep_newest);
    let backups: Vec<String> = gone.iter().map(|&id| id.to_owned()).collect();
    target.remove(backups.iter().map(|id| path_of(id)).collect()).await?;
    let kept: Vec<&Manifest> = manifests.iter().filter(|manifest| !gone.contains(manifest.id.as_str())).collect();
    let named: BTreeSet<&str> = kept.iter().flat_map(|manifest| manifest.objects().into_keys()).collect();
    let mut objects = target.objects().await?;
    objects.retain(|hash, _| !named.contains(hash.as_str()));
    target.remove(objects.keys().map(|hash| object_path(hash)).collect()).await?;
    Ok(Pruned { backups, objects: objects.len() as u64, bytes: objects.values().sum(), kept: kept.len() })
}

/// Which ones go. They come oldest first.
pub(super) fn outdated(manifests: &[Manifest], keep_ms: u64, now_ms: u64, keep_newest: usize) -> BTreeSet<&str> {
    let mut newer: BTreeMap<&str, usize> = BTreeMap::new();
    let mut gone = BTreeSet::new();
    for manifest in manifests.iter().rev() {
        let newer = newer.entry(&manifest.cluster_id).or_default();
        if *newer >= keep_newest && manifest.taken_at_ms.saturating_add(keep_ms) < now_ms {
            gone.insert(manifest.id.as_str());
        }
        *newer += 1;
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::super::create::send_for_test;
    use super::super::testing::{State, target};
    use super::super::verify::verify;
    use super::*;

    #[tokio::test]
    async fn what_is_named_stays_and_the_rest_goes() {
        let (dir, state) = (tempfile::tempdir().unwrap(), State::new());
        let target = target(dir.path());
        let mut ids = Vec::new();
        for now_ms in [1_000, 2_000, 3_000] {
            state.put(&format!("at-{now_ms}"));
            let checkpoint = state.checkpoint();
            let (taken, _) = send_for_test(&target, checkpoint.path(), Some(State::CHUNK), now_ms).await.unwrap();
            ids.push(taken.id);
        }
        let stray = blake3::hash(b"stray").to_hex();
        target.write(&object_path(&stray), b"stray".as_slice().into()).await.unwrap();
        let pruned = prune(&target, "test", 1_500, 3_000, KEEP_NEWEST).await.unwrap();
        assert_eq!((pruned.backups.as_slice(), pruned.kept), (&ids[..1], 2));
        assert!(pruned.objects >= 2, "the stray one, and what only the first named: {pruned:?}");
        for id in &ids[1..] {
            verify(&target, id, false, &mut |_, _| {}).await.unwrap();
        }
        assert!(verify(&target, &ids[0], true, &mut |_, _| {}).await.is_err());
        // However old it is.
        let pruned = prune(&target, "test", 0, u64::MAX, KEEP_NEWEST).await.unwrap();
        assert_eq!((pruned.backups.as_slice(), pruned.kept), (&ids[1..2], 1));
        verify(&target, "latest", false, &mut |_, _| {}).await.unwrap();
        let pruned = prune(&target, "test", 0, u64::MAX, KEEP_NEWEST).await.unwrap();
        assert_eq!(pruned, Pruned { kept: 1, ..Pruned::default() });
    }

    #[tokio::test]
    async fn nothing_goes_while_a_manifest_cannot_be_read() {
        let (dir, state) = (tempfile::tempdir().unwrap(), State::new());
        let target = target(dir.path());
        send_for_test(&target, state.checkpoint().path(), Some(State::CHUNK), 1_000).await.unwrap();
        target.write("backups/strange.json", b"{}".as_slice().into()).await.unwrap();
        let before = target.objects().await.unwrap();
        let error = prune(&target, "test", 0, u64::MAX, 0).await.unwrap_err();
        assert!(format!("{error:#}").contains("strange.json"), "{error:#}");
        assert_eq!(target.objects().await.unwrap(), before);
    }
}
