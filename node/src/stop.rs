//! Why and when a node stops: one switch that everybody watches.

use tokio::sync::watch;

/// What made the node stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Asked to.
    Signal,
    /// It met a fault that it cannot reason about.
    Fault(String),
}

/// The switch. Cheap to clone; the first reason stays.
#[derive(Debug, Clone)]
pub(crate) struct Stop {
    sender: watch::Sender<Option<Reason>>,
}

impl Stop {
    /// A switch that is not thrown.
    pub(crate) fn new() -> Self {
        Stop { sender: watch::Sender::new(None) }
    }

    /// Throws it.
    pub(crate) fn now(&self, reason: Reason) {
        self.sender.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(reason);
            }
            first
        });
    }

    /// Whether it was thrown.
    pub(crate) fn is_thrown(&self) -> bool {
        self.sender.borrow().is_some()
    }

    /// Waits until it is thrown.
    pub(crate) async fn wait(&self) -> Reason {
        let mut receiver = self.sender.subscribe();
        // The sender is `self`: it cannot be gone.
        let thrown = receiver.wait_for(Option::is_some).await.map(|reason| reason.clone());
        thrown.ok().flatten().unwrap_or(Reason::Signal)
    }
}
