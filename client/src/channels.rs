//! Connections: one lazy channel an endpoint, and who is thought to lead. Every call over them says which namespace it is
//! about, and under which grants.
//!
//! Deliberately absent: health checks. A node is as good as its last answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_proto::v1::{Fence, FenceKind};
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel as Transport, Endpoint};
use tonic::{Request, Status};

use crate::config::is_host_port;
use crate::error::Error;

/// The most channels kept. Hints can name anything; what was configured is kept in any case.
const MAX_CHANNELS: usize = 64;
/// How long a hint does not send anybody back to a node that failed.
const SHUNNED: Duration = Duration::from_secs(1);

/// What every call goes through.
pub(crate) type Channel = InterceptedService<Transport, Said>;

/// What a client's calls say besides their message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Said {
    namespace: Option<MetadataValue<Ascii>>,
    fences: Vec<MetadataValue<Ascii>>,
}

impl Said {
    /// For the given namespace; empty: none is said.
    pub(crate) fn namespace(mut self, name: &str) -> Result<Self, Error> {
        self.namespace = if name.is_empty() { None } else { Some(ascii("namespace", name)?) };
        Ok(self)
    }

    /// Under these grants too.
    pub(crate) fn fences(mut self, fences: impl IntoIterator<Item = Fence>) -> Result<Self, Error> {
        for fence in fences {
            let kind = match fence.kind() {
                FenceKind::Lock => "lock",
                FenceKind::Scope => "scope",
                FenceKind::Task => "task",
                FenceKind::Unspecified => {
                    let message = "a fence must be for a lock, a scope or a task".to_owned();
                    return Err(Error::Config { message });
                }
            };
            self.fences.push(ascii("fence", &format!("{kind}/{}={}", fence.name, fence.token))?);
        }
        Ok(self)
    }
}

fn ascii(what: &str, text: &str) -> Result<MetadataValue<Ascii>, Error> {
    text.parse().map_err(|_| Error::Config { message: format!("{what} must be printable ASCII; got {text:?}") })
}

impl Interceptor for Said {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(namespace) = &self.namespace {
            request.metadata_mut().insert("quorate-namespace", namespace.clone());
        }
        for fence in &self.fences {
            request.metadata_mut().append("quorate-fence", fence.clone());
        }
        Ok(request)
    }
}

/// One endpoint and the channel to it.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) endpoint: String,
    pub(crate) channel: Channel,
}

/// The connections of one client. Handles that say different things share them.
#[derive(Debug, Clone)]
pub(crate) struct Channels {
    shared: Arc<Shared>,
    said: Said,
}

#[derive(Debug)]
struct Shared {
    configured: Vec<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: BTreeMap<String, Known>,
    preferred: Option<String>,
    next: usize,
    /// Counts uses, so that the channel unused for longest can go.
    uses: u64,
}

/// What is known of one endpoint.
#[derive(Debug)]
struct Known {
    channel: Transport,
    failed_at: Option<Instant>,
    last_use: u64,
}

impl Channels {
    pub(crate) fn new(configured: Vec<String>) -> Self {
        // Clients that were given the same list do not all begin with the same node.
        let next = uuid::Uuid::new_v4().as_u128() as usize % configured.len().max(1);
        let state = Mutex::new(State { next, ..State::default() });
        Channels { shared: Arc::new(Shared { configured, state }), said: Said::default() }
    }

    /// What calls over these channels say.
    pub(crate) fn said(&self) -> &Said {
        &self.said
    }

    /// The same connections, whose calls say something else.
    pub(crate) fn saying(&self, said: Said) -> Self {
        Channels { shared: self.shared.clone(), said }
    }

    /// The node to call now: the one thought to lead, else the next in turn.
    pub(crate) fn pick(&self) -> Result<Connection, Error> {
        let endpoint = {
            let state = self.shared.state.lock();
            match &state.preferred {
                Some(preferred) => preferred.clone(),
                None => self.shared.configured[state.next % self.shared.configured.len()].clone(),
            }
        };
        self.to(&endpoint)
    }

    /// The connection to one endpoint.
    pub(crate) fn to(&self, endpoint: &str) -> Result<Connection, Error> {
        let channel = self.shared.known(&mut self.shared.state.lock(), endpoint)?.channel.clone();
        let channel = InterceptedService::new(channel, self.said.clone());
        Ok(Connection { endpoint: endpoint.to_owned(), channel })
    }

    /// A node said who leads. It may be wrong, and another node may know no better than that one.
    pub(crate) fn leads(&self, endpoint: String) {
        if !is_host_port(&endpoint) {
            return;
        }
        let mut state = self.shared.state.lock();
        let Ok(known) = self.shared.known(&mut state, &endpoint) else { return };
        if known.failed_at.is_none_or(|at| at.elapsed() >= SHUNNED) {
            state.preferred = Some(endpoint);
        }
    }

    /// A node failed: the next call goes elsewhere.
    pub(crate) fn failed(&self, endpoint: &str) {
        let mut state = self.shared.state.lock();
        if let Some(known) = state.open.get_mut(endpoint) {
            known.failed_at = Some(Instant::now());
        }
        if state.preferred.as_deref() == Some(endpoint) {
            state.preferred = None;
        }
        if self.shared.configured[state.next % self.shared.configured.len()] == endpoint {
            state.next += 1;
        }
    }
}

impl Shared {
    /// The endpoint's channel, opened if need be.
    fn known<'a>(&self, state: &'a mut State, endpoint: &str) -> Result<&'a Known, Error> {
        if !state.open.contains_key(endpoint) {
            let channel = open(endpoint)?;
            self.make_room(state);
            state.open.insert(endpoint.to_owned(), Known { channel, failed_at: None, last_use: 0 });
        }
        state.uses += 1;
        let uses = state.uses;
        match state.open.get_mut(endpoint) {
            Some(known) => {
                known.last_use = uses;
                Ok(known)
            }
            None => Err(Error::Config { message: format!("endpoints must be host:port; got {endpoint:?}") }),
        }
    }

    /// Forgets the channel that was unused for longest, if there are too many. Calls under way on it go on.
    fn make_room(&self, state: &mut State) {
        if state.open.len() < MAX_CHANNELS {
            return;
        }
        let oldest = state
            .open
            .iter()
            .filter(|(endpoint, _)| !self.configured.contains(endpoint))
            .min_by_key(|(_, known)| known.last_use)
            .map(|(endpoint, _)| endpoint.clone());
        if let Some(oldest) = oldest {
            state.open.remove(&oldest);
        }
    }
}

fn open(endpoint: &str) -> Result<Transport, Error> {
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

    fn two() -> Channels {
        Channels::new(vec!["a:1".to_owned(), "b:1".to_owned()])
    }

    #[tokio::test]
    async fn follows_the_leader_and_leaves_a_failed_node() {
        let channels = two();
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

    #[tokio::test]
    async fn a_hint_is_checked_and_does_not_lead_back_to_a_node_that_just_failed() {
        let channels = two();
        let first = channels.pick().unwrap().endpoint;
        for bad in ["", "c", "c:0", "http://c:1", "c d:1"] {
            channels.leads(bad.to_owned());
            assert_eq!(channels.pick().unwrap().endpoint, first, "{bad:?}");
        }
        channels.leads("c:1".to_owned());
        let failed = channels.pick().unwrap().endpoint;
        assert_eq!(failed, "c:1");
        channels.failed(&failed);
        channels.leads(failed.clone());
        assert_eq!(channels.pick().unwrap().endpoint, first);
        let long_ago = Instant::now() - SHUNNED;
        channels.shared.state.lock().open.get_mut(&failed).unwrap().failed_at = Some(long_ago);
        channels.leads(failed.clone());
        assert_eq!(channels.pick().unwrap().endpoint, failed);
    }

    #[tokio::test]
    async fn hints_cannot_fill_the_memory() {
        let channels = two();
        channels.to("a:1").unwrap();
        channels.to("b:1").unwrap();
        for port in 1..=200 {
            channels.leads(format!("c:{port}"));
        }
        let state = channels.shared.state.lock();
        assert_eq!(state.open.len(), MAX_CHANNELS);
        assert!(state.open.contains_key("a:1") && state.open.contains_key("b:1"));
        assert!(state.open.contains_key("c:200") && !state.open.contains_key("c:1"));
    }
}
