//! The closed loop: so many clients at once, each doing one thing after another.
//!
//! Deliberately absent: the loops. What a client does until its time is up, its program says.

use anyhow::Result;

use crate::latency::Latency;

/// Runs all of them to their end; gives what each brought, in their order.
pub(crate) async fn at_once<T, F>(clients: impl IntoIterator<Item = F>) -> Result<Vec<T>>
where
    F: Future<Output = Result<T>> + Send + 'static,
    T: Send + 'static,
{
    let running: Vec<_> = clients.into_iter().map(tokio::spawn).collect();
    let mut brought = Vec::with_capacity(running.len());
    for client in running {
        brought.push(client.await??);
    }
    Ok(brought)
}

/// The latencies of several clients as those of one.
pub(crate) fn together<'a>(latencies: impl IntoIterator<Item = &'a Latency>) -> Result<Latency> {
    let mut all = Latency::new()?;
    for latency in latencies {
        all.add(latency)?;
    }
    Ok(all)
}
