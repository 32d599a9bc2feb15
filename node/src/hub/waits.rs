//! Wake-ups by key: of claims that wait for work, and of calls that wait for a lock.
//!
//! A change of a lock wakes every call that waits for it on this node; each looks whether the change was its grant.
//! Deliberately absent: who is next. The state grants, in the command that frees the lock.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::{Hub, KEYS_BEFORE_SWEEP, Listening};

impl Hub {
    /// What a call that waits for this lock listens to.
    pub(crate) fn lock_changed(self: &Arc<Self>, name: &str) -> Listening<Arc<Notify>> {
        Listening { to: self.locks.listen(name), _hub: self.clone() }
    }
}

/// The wake-ups by key; those that nobody listens to are forgotten when there are many.
#[derive(Default)]
pub(super) struct Waits {
    waiting: Mutex<HashMap<String, Arc<Notify>>>,
}

impl Waits {
    fn listen(&self, key: &str) -> Arc<Notify> {
        self.swept().entry(key.to_owned()).or_default().clone()
    }

    /// For whoever waits under several keys.
    pub(super) fn listen_to_each(&self, keys: impl Iterator<Item = String>) -> Vec<Arc<Notify>> {
        let mut waiting = self.swept();
        keys.map(|key| waiting.entry(key).or_default().clone()).collect()
    }

    fn swept(&self) -> MutexGuard<'_, HashMap<String, Arc<Notify>>> {
        let mut waiting = self.waiting.lock();
        if waiting.len() > KEYS_BEFORE_SWEEP {
            waiting.retain(|_, listened| Arc::strong_count(listened) > 1);
        }
        waiting
    }

    /// Wakes one of those who wait under this key; if there is none, the next who comes.
    pub(super) fn wake_one(&self, key: &str) {
        if let Some(listened) = self.waiting.lock().get(key) {
            listened.notify_one();
        }
    }

    /// Wakes everybody who waits under this key.
    pub(super) fn wake(&self, key: &str) {
        if let Some(listened) = self.waiting.lock().get(key) {
            listened.notify_waiters();
        }
    }

    /// Wakes whoever waits at all.
    pub(super) fn wake_everybody(&self) {
        self.waiting.lock().values().for_each(|listened| listened.notify_waiters());
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_key_wakes_those_who_wait_under_it_and_nobody_else() {
        let waits = Waits::default();
        let (ours, theirs) = (waits.listen("a"), waits.listen("b"));
        let mut first = Box::pin(ours.notified());
        let mut second = Box::pin(ours.notified());
        let mut other = Box::pin(theirs.notified());
        first.as_mut().enable();
        second.as_mut().enable();
        other.as_mut().enable();
        waits.wake("a");
        assert!(first.now_or_never().is_some() && second.now_or_never().is_some());
        assert!(other.as_mut().now_or_never().is_none());
        waits.wake_everybody();
        assert!(other.now_or_never().is_some());
    }

    #[test]
    fn a_sweep_forgets_only_what_nobody_listens_to() {
        let waits = Waits::default();
        let kept = waits.listen("kept");
        for number in 0..KEYS_BEFORE_SWEEP {
            drop(waits.listen(&number.to_string()));
        }
        let _after_the_sweep = waits.listen("one more");
        assert_eq!(waits.waiting.lock().len(), 2);
        assert!(Arc::ptr_eq(&kept, &waits.listen("kept")));
    }
}
