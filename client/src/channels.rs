//! Connections: one lazy channel an endpoint, and who is thought to lead.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

use crate::error::Error;

/// One endpoint and the channel to it.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) endpoint: String,
    pub(crate) channel: Channel,
}

/// The connections of one client.
#[derive(Debug)]
pub(crate) struct Channels {
    configured: Vec<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: BTreeMap<String, Channel>,
    preferred: Option<String>,
    next: usize,
}

impl Channels {
    pub(crate) fn new(configured: Vec<String>) -> Self {
        // Clients that were given the same list do not all begin with the same node.
        let next = uuid::Uuid::new_v4().as_u128() as usize % configured.len().max(1);
        Channels { configured, state: Mutex::new(State { next, ..State::default() }) }
    }

    /// The node to call now: the one thought to lead, else the next in turn.
    pub(crate) fn pick(&self) -> Result<Connection, Error> {
        let endpoint = {
            let state = self.state.lock();
            match &state.preferred {
                Some(preferred) => preferred.clone(),
                None => self.configured[state.next % self.configured.len()].clone(),
            }
        };
        self.to(&endpoint)
    }

    /// The connection to one endpoint.
    pub(crate) fn to(&self, endpoint: &str) -> Result<Connection, Error> {
        let mut state = self.state.lock();
        let channel = match state.open.get(endpoint) {
            Some(channel) => channel.clone(),
            None => {
                let channel = open(endpoint)?;
                state.open.insert(endpoint.to_owned(), channel.clone());
                channel
            }
        };
        Ok(Connection { endpoint: endpoint.to_owned(), channel })
    }

    /// A node said who leads.
    pub(crate) fn leads(&self, endpoint: String) {
        self.state.lock().preferred = Some(endpoint);
    }

    /// A node failed: the next call goes elsewhere.
    pub(crate) fn failed(&self, endpoint: &str) {
        let mut state = self.state.lock();
        if state.preferred.as_deref() == Some(endpoint) {
            state.preferred = None;
        }
        if self.configured[state.next % self.configured.len()] == endpoint {
            state.next += 1;
        }
    }
}

fn open(endpoint: &str) -> Result<Channel, Error> {
    let uri = Endpoint::from_shared(format!("http://{endpoint}"))
        .map_err(|e| Error::Config { message: format!("endpoints must be host:port; got {endpoint:?}: {e}") })?;
    Ok(uri
        .connect_timeout(Duration::from_secs(1))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true)
        .connect_lazy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn follows_the_leader_and_leaves_a_failed_node() {
        let channels = Channels::new(vec!["a:1".to_owned(), "b:1".to_owned()]);
        let first = channels.pick().unwrap().endpoint;
        assert_eq!(channels.pick().unwrap().endpoint, first, "stays while all is well");
        channels.failed(&first);
        let second = channels.pick().unwrap().endpoint;
        assert_ne!(second, first);
        channels.leads("c:1".to_owned());
        assert_eq!(channels.pick().unwrap().endpoint, "c:1");
        channels.failed("c:1");
        assert_eq!(channels.pick().unwrap().endpoint, second);
    }
}
