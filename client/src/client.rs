//! The client: one handle to the whole cluster.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::v1::Fence;
use tonic::{Response, Status};

use crate::agents::Agents;
use crate::backups::Backups;
use crate::blobs::Blobs;
use crate::breakers::Breakers;
use crate::bus::Bus;
use crate::call::{Outcome, Plan, call};
use crate::channels::{Channel, Channels, Said};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::dispatch::Dispatch;
use crate::error::Error;
use crate::kv::Kv;
use crate::locks::Locks;
use crate::namespaces::Namespaces;
use crate::progress::Progress;
use crate::retries::Retries;
use crate::schedules::Schedules;
use crate::sessions::Sessions;
use crate::tasks::Tasks;

/// A handle to a cluster. Cheap to clone; connections are made on first use and shared.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    channels: Channels,
}

impl Client {
    /// Checks the settings. Connects to nothing yet. Must run within a tokio runtime.
    pub fn connect(config: Config) -> Result<Self, Error> {
        config.check()?;
        let said = Said::default().namespace(&config.namespace)?;
        let channels = Channels::new(config.endpoints.clone()).saying(said);
        Ok(Client { inner: Arc::new(Inner { config, channels }) })
    }

    /// A handle to another namespace of the same cluster. It shares the connections, and keeps the fences: they are for
    /// grants of the namespace that the calls are about, so that those of another refuse every write.
    pub fn in_namespace(&self, name: &str) -> Result<Self, Error> {
        let said = self.inner.channels.said().clone().namespace(name)?;
        let config = Config { namespace: name.to_owned(), ..self.inner.config.clone() };
        Ok(Client { inner: Arc::new(Inner { config, channels: self.inner.channels.saying(said) }) })
    }

    /// A handle whose writes happen only while these grants are held: [`Error::Fenced`] otherwise. At most eight.
    pub fn fenced(&self, fences: impl IntoIterator<Item = Fence>) -> Result<Self, Error> {
        let said = self.inner.channels.said().clone().fences(fences)?;
        let config = self.inner.config.clone();
        Ok(Client { inner: Arc::new(Inner { config, channels: self.inner.channels.saying(said) }) })
    }

    /// The one lease.
    pub fn sessions(&self) -> Sessions {
        Sessions { client: self.clone() }
    }

    /// Who exists.
    pub fn agents(&self) -> Agents {
        Agents { client: self.clone() }
    }

    /// Who does what.
    pub fn tasks(&self) -> Tasks {
        Tasks { client: self.clone() }
    }

    /// What decides whose turn it is.
    pub fn dispatch(&self) -> Dispatch {
        Dispatch { client: self.clone() }
    }

    /// What is too large for the log.
    pub fn blobs(&self) -> Blobs {
        Blobs { client: self.clone() }
    }

    /// What is broken.
    pub fn breakers(&self) -> Breakers {
        Breakers { client: self.clone() }
    }

    /// Named retry policies.
    pub fn retries(&self) -> Retries {
        Retries { client: self.clone() }
    }

    /// What is due.
    pub fn schedules(&self) -> Schedules {
        Schedules { client: self.clone() }
    }

    /// How far the work is.
    pub fn progress(&self) -> Progress {
        Progress { client: self.clone() }
    }

    /// Who holds what.
    pub fn locks(&self) -> Locks {
        Locks { client: self.clone() }
    }

    /// What is said.
    pub fn bus(&self) -> Bus {
        Bus { client: self.clone() }
    }

    /// What is kept.
    pub fn kv(&self) -> Kv {
        Kv { client: self.clone() }
    }

    /// How the cluster is divided.
    pub fn namespaces(&self) -> Namespaces {
        Namespaces { client: self.clone() }
    }

    /// Copies of the whole state.
    pub fn backups(&self) -> Backups {
        Backups { client: self.clone() }
    }

    /// The cluster itself.
    pub fn cluster(&self) -> Cluster {
        Cluster { client: self.clone() }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.inner.config
    }

    pub(crate) fn channels(&self) -> &Channels {
        &self.inner.channels
    }

    pub(crate) async fn call<T, F>(&self, plan: Plan, attempt: impl FnMut(Channel) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.call_in_full(plan, attempt).await.result
    }

    /// For a caller that must know when the answer was asked for, or what came before it.
    pub(crate) async fn call_in_full<T, F>(&self, plan: Plan, attempt: impl FnMut(Channel) -> F) -> Outcome<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        call(&self.inner.channels, &self.inner.config, plan, attempt).await
    }
}

/// Whole milliseconds, as the contract counts time.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A fresh id, sortable by time.
pub(crate) fn new_id(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::now_v7().simple())
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::FenceKind;

    use super::*;

    #[tokio::test]
    async fn a_fenced_handle_stays_fenced_in_another_namespace() {
        let client = Client::connect(Config::new(["127.0.0.1:1"])).unwrap();
        let fence = Fence { kind: FenceKind::Lock as i32, name: "deploy".to_owned(), token: 7 };
        let elsewhere = client.fenced([fence.clone()]).unwrap().in_namespace("other").unwrap();
        let wanted = Said::default().fences([fence]).unwrap().namespace("other").unwrap();
        assert_eq!(elsewhere.channels().said(), &wanted);
        assert_eq!(elsewhere.config().namespace, "other");
    }
}
