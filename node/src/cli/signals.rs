//! SIGTERM and SIGINT, for commands that have something to put in order before they end.
//!
//! Deliberately absent: what they mean. The first asks a command to end, and what a second one does is the command's.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::Failure;

/// From here on, this process hears them and is not ended by them.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// The next of either. Nothing is lost if it is dropped and called again.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
