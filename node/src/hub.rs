//! Wake-ups on this node: claims that wait for work, watchers of agents, the loop of due things.
//!
//! Everything here is a hint. Whoever waits looks at the state before and after, and again after [`RECHECK`], so a lost
//! or a superfluous wake-up costs time and nothing else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_proto::v1::Agent;
use quorate_raft::effect::Effect;
use tokio::sync::{Notify, broadcast};

/// How long a waiter trusts that it will be woken.
pub(crate) const RECHECK: Duration = Duration::from_secs(1);
const WATCH_BUFFER: usize = 4_096;
/// Beyond so many agents and capabilities, those that nobody listens to are forgotten.
const KEYS_BEFORE_SWEEP: usize = 16_384;

/// What watchers of agents are told.
#[derive(Debug, Clone)]
pub(crate) enum AgentNews {
    /// A record changed or went away.
    Changed { agent: Box<Agent>, removed: bool, rev: u64 },
    /// The whole state was replaced: look again.
    Replaced,
}

/// The wake-ups of one node.
pub(crate) struct Hub {
    work: Mutex<HashMap<String, Arc<Notify>>>,
    agents: broadcast::Sender<AgentNews>,
    due: Notify,
}

impl Hub {
    /// Nobody waits yet.
    pub(crate) fn new() -> Self {
        Hub { work: Mutex::default(), agents: broadcast::Sender::new(WATCH_BUFFER), due: Notify::new() }
    }

    /// What a waiting claim listens to: work for the agent itself, for any agent, and for each of its capabilities.
    pub(crate) fn listen(&self, agent_id: &str, capabilities: &[String]) -> Vec<Arc<Notify>> {
        let mut work = self.work.lock();
        if work.len() > KEYS_BEFORE_SWEEP {
            work.retain(|_, waiting| Arc::strong_count(waiting) > 1);
        }
        let keys = [format!("agent:{agent_id}"), String::new()].into_iter().chain(capabilities.iter().cloned());
        keys.map(|key| work.entry(key).or_default().clone()).collect()
    }

    /// Tells watchers of agents.
    pub(crate) fn watch_agents(&self) -> broadcast::Receiver<AgentNews> {
        self.agents.subscribe()
    }

    /// Waits for a reason to look at what is due.
    pub(crate) async fn due_changed(&self) {
        self.due.notified().await;
    }

    /// Passes on what applied entries brought about.
    pub(crate) fn announce(&self, effects: &[Effect]) {
        self.due.notify_one();
        for effect in effects {
            match effect {
                Effect::TaskReady { capabilities, agent_id } => self.wake_for_task(capabilities, agent_id),
                Effect::AgentReady { agent_id } => self.wake_all(&format!("agent:{agent_id}")),
                Effect::AgentChanged { agent, removed, rev } => {
                    self.tell(AgentNews::Changed { agent: agent.clone(), removed: *removed, rev: *rev });
                }
                Effect::StateReplaced => {
                    self.work.lock().values().for_each(|waiting| waiting.notify_waiters());
                    self.tell(AgentNews::Replaced);
                }
                Effect::SessionOpened { .. } | Effect::SessionEnded { .. } => {}
            }
        }
    }

    fn tell(&self, news: AgentNews) {
        // Without a watcher there is nobody to tell.
        let _nobody = self.agents.send(news);
    }

    /// One task needs one worker. Where several capabilities are needed, not every listener of one has the others.
    fn wake_for_task(&self, capabilities: &[String], agent_id: &str) {
        match (agent_id, capabilities) {
            ("", []) => self.wake_one(""),
            ("", [only]) => self.wake_one(only),
            ("", [first, ..]) => self.wake_all(first),
            (agent_id, _) => self.wake_all(&format!("agent:{agent_id}")),
        }
    }

    fn wake_one(&self, key: &str) {
        if let Some(waiting) = self.work.lock().get(key) {
            waiting.notify_one();
        }
    }

    fn wake_all(&self, key: &str) {
        if let Some(waiting) = self.work.lock().get(key) {
            waiting.notify_waiters();
        }
    }
}
