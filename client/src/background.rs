//! What is done after its caller has gone: giving back what a dropped guard held.
//!
//! Deliberately absent: any promise. A process that ends, or a runtime that shuts down, leaves it to the session's end.

use tokio::runtime::Handle;

/// Runs it beside everything else, if there is a runtime left to run it.
pub(crate) fn in_background(work: impl Future<Output = ()> + Send + 'static) {
    match Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(work)),
        Err(_) => tracing::debug!("dropped outside of a runtime; what was held ends with its session"),
    }
}
