//! Wake-ups on this node: claims that wait for work, watchers of agents, the loops of the leader. Each namespace has a hub
//! of its own; the loops look at all of them.
//!
//! Everything here is a hint. Whoever waits looks at the state before and after, and again after [`RECHECK`], so a lost
//! or a superfluous wake-up costs time and nothing else.

mod deliveries;
mod waits;

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use quorate_proto::v1::Agent;
use quorate_proto::v1::AgentStatus;
use quorate_raft::apply::Happened;
use quorate_raft::effect::Effect;
use tokio::sync::{Notify, broadcast, mpsc};

pub(crate) use self::deliveries::{DeliveryNews, Told};

/// How long a waiter trusts that it will be woken.
pub(crate) const RECHECK: Duration = Duration::from_secs(1);
/// Changes of agents that may wait for a watcher. All of it is allocated for the first one that watches in a namespace.
const WATCH_BUFFER: usize = 256;
/// Beyond so many agents and capabilities, those that nobody listens to are forgotten.
const KEYS_BEFORE_SWEEP: usize = 16_384;
/// Beyond so many namespaces, the hubs of those that nobody listens in are forgotten.
const NAMESPACES_BEFORE_SWEEP: usize = 2_000;

/// What watchers of agents are told.
#[derive(Debug, Clone)]
pub(crate) enum AgentNews {
    /// A record changed or went away.
    Changed { agent: Box<Agent>, removed: bool, rev: u64 },
    /// The whole state was replaced: look again.
    Replaced,
}

/// What the stream of an agent with a standing order is told.
#[derive(Debug, Clone)]
pub(crate) enum WorkNews {
    /// It was given a task.
    Assigned { task_id: String, token: u64 },
    /// An attempt of its own must stop, or is fenced.
    Revoked { task_id: String, token: u64, grace_ms: u64, reason: String },
    /// It is to take no more.
    Draining,
    /// Its record is gone, or belongs to another session.
    Gone,
    /// It has no standing order: not yet, or a claim has ended it.
    Withdrawn,
    /// The whole state was replaced: look again.
    Replaced,
}

/// The hubs of every namespace that somebody listens in, and what wakes this node's loops.
#[derive(Default)]
pub(crate) struct Hubs {
    by_namespace: Mutex<HashMap<Arc<str>, Arc<Hub>>>,
    schedules: Notify,
    more: Notify,
}

impl Hubs {
    /// The hub of a namespace. Only for one that exists: hubs of names that callers make up would fill memory.
    pub(crate) fn of(&self, namespace: &Arc<str>) -> Arc<Hub> {
        let mut hubs = self.by_namespace.lock();
        if hubs.len() > NAMESPACES_BEFORE_SWEEP {
            hubs.retain(|_, hub| Arc::strong_count(hub) > 1);
        }
        hubs.entry(namespace.clone()).or_insert_with(|| Arc::new(Hub::new())).clone()
    }

    /// Waits until more work is left to assign than one command could.
    pub(crate) async fn more_work(&self) {
        self.more.notified().await;
    }

    /// Assigns what is left, as a new leader should.
    pub(crate) fn look_for_work(&self) {
        self.more.notify_one();
    }

    /// Waits for a change of the schedules.
    pub(crate) async fn schedules_changed(&self) {
        self.schedules.notified().await;
    }

    /// Passes on what applied entries brought about.
    pub(crate) fn announce(&self, happened: &[Happened]) {
        for Happened { namespace, effect } in happened {
            match effect {
                Effect::WorkLeft | Effect::BusLeft => self.more.notify_one(),
                Effect::SchedulesChanged => self.schedules.notify_one(),
                Effect::StateReplaced => {
                    self.schedules.notify_one();
                    self.more.notify_one();
                }
                _ => {}
            }
            let hub = self.by_namespace.lock().get(namespace).cloned();
            if let Some(hub) = hub {
                hub.announce(effect);
            }
        }
    }
}

/// What somebody listens with. It holds on to the hub: one that nobody listens in is forgotten, and announces nothing.
pub(crate) struct Listening<T> {
    to: T,
    _hub: Arc<Hub>,
}

impl<T> Deref for Listening<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.to
    }
}

impl<T> DerefMut for Listening<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.to
    }
}

/// The wake-ups of one namespace.
pub(crate) struct Hub {
    /// Claims that wait for work.
    work: waits::Waits,
    /// The stream of each agent that has one here, and the session it was opened for.
    streams: Mutex<HashMap<String, Standing>>,
    /// Watchers of agents; not set before the first of them comes.
    agents: OnceLock<broadcast::Sender<AgentNews>>,
    /// Calls that wait for a lock.
    locks: waits::Waits,
    /// The streams of consumers.
    consumers: deliveries::Consumers,
}

struct Standing {
    session_id: String,
    news: mpsc::UnboundedSender<WorkNews>,
}

impl Hub {
    /// Nobody waits yet.
    fn new() -> Self {
        Hub {
            work: waits::Waits::default(),
            streams: Mutex::default(),
            agents: OnceLock::new(),
            locks: waits::Waits::default(),
            consumers: deliveries::Consumers::default(),
        }
    }

    /// What a waiting claim listens to: work for the agent itself, for any agent, and for each of its capabilities.
    pub(crate) fn listen(self: &Arc<Self>, agent_id: &str, capabilities: &[String]) -> Listening<Vec<Arc<Notify>>> {
        let keys = [format!("agent:{agent_id}"), String::new()].into_iter().chain(capabilities.iter().cloned());
        Listening { to: self.work.listen_to_each(keys), _hub: self.clone() }
    }

    /// Tells watchers of agents.
    pub(crate) fn watch_agents(self: &Arc<Self>) -> Listening<broadcast::Receiver<AgentNews>> {
        let to = self.agents.get_or_init(|| broadcast::Sender::new(WATCH_BUFFER)).subscribe();
        Listening { to, _hub: self.clone() }
    }

    /// Tells the agent's stream from now on; an earlier stream of the same agent ends. What is told is bounded by what the
    /// agent may hold.
    pub(crate) fn stand(
        self: &Arc<Self>,
        agent_id: &str,
        session_id: &str,
    ) -> Listening<mpsc::UnboundedReceiver<WorkNews>> {
        let (news, to) = mpsc::unbounded_channel();
        let mut streams = self.streams.lock();
        if streams.len() > KEYS_BEFORE_SWEEP {
            streams.retain(|_, standing| !standing.news.is_closed());
        }
        streams.insert(agent_id.to_owned(), Standing { session_id: session_id.to_owned(), news });
        Listening { to, _hub: self.clone() }
    }

    /// Passes on what an applied command brought about.
    fn announce(&self, effect: &Effect) {
        match effect {
            Effect::TaskReady { capabilities, agent_id, picky } => {
                self.wake_for_task(capabilities, agent_id, *picky);
            }
            Effect::AgentReady { agent_id } => self.work.wake(&format!("agent:{agent_id}")),
            Effect::AgentChanged { agent, removed, rev } => {
                self.tell_stream_of_change(agent, *removed);
                self.tell(AgentNews::Changed { agent: agent.clone(), removed: *removed, rev: *rev });
            }
            Effect::StateReplaced => {
                self.work.wake_everybody();
                for standing in self.streams.lock().values() {
                    let _gone = standing.news.send(WorkNews::Replaced);
                }
                self.tell(AgentNews::Replaced);
                self.locks.wake_everybody();
                self.consumers.tell_everybody(DeliveryNews::LookAgain);
            }
            Effect::LockChanged { name } => self.locks.wake(name),
            Effect::Delivered { subscription, consumer_id, seq, token } => {
                let news = DeliveryNews::Delivered { seq: *seq, token: *token };
                self.consumers.tell(subscription, consumer_id, news);
            }
            Effect::DeliveryGone { subscription, consumer_id, seq, token } => {
                self.consumers.tell(subscription, consumer_id, DeliveryNews::Gone { seq: *seq, token: *token });
            }
            Effect::ConsumerGone { subscription, consumer_id } => {
                self.consumers.tell(subscription, consumer_id, DeliveryNews::ConsumerGone);
            }
            Effect::LimitsChanged => self.work.wake_everybody(),
            Effect::BreakerChanged { .. } if effect.lets_work_start() => self.work.wake_everybody(),
            Effect::Assigned { agent_id, task_id, token } => {
                self.tell_stream(agent_id, || WorkNews::Assigned { task_id: task_id.clone(), token: *token });
            }
            Effect::Revoked { agent_id, task_id, token, grace_ms, reason } => {
                self.tell_stream(agent_id, || WorkNews::Revoked {
                    task_id: task_id.clone(),
                    token: *token,
                    grace_ms: *grace_ms,
                    reason: reason.clone(),
                });
            }
            Effect::BreakerChanged { .. }
            | Effect::WorkLeft
            | Effect::BusLeft
            | Effect::SchedulesChanged
            | Effect::ScheduleFired { .. }
            | Effect::TaskTimedOut { .. }
            | Effect::DeadlockResolved { .. }
            | Effect::SessionOpened { .. }
            | Effect::SessionEnded { .. } => {}
        }
    }

    fn tell_stream(&self, agent_id: &str, news: impl FnOnce() -> WorkNews) {
        if let Some(standing) = self.streams.lock().get(agent_id) {
            // A stream that is gone comes again and looks at what the agent holds.
            let _gone = standing.news.send(news());
        }
    }

    fn tell_stream_of_change(&self, agent: &Agent, removed: bool) {
        if let Some(standing) = self.streams.lock().get(&agent.id) {
            if removed || agent.session_id != standing.session_id {
                let _gone = standing.news.send(WorkNews::Gone);
            } else if agent.status() == AgentStatus::Draining {
                let _gone = standing.news.send(WorkNews::Draining);
            } else if !agent.standing {
                let _gone = standing.news.send(WorkNews::Withdrawn);
            }
        }
    }

    fn tell(&self, news: AgentNews) {
        if let Some(agents) = self.agents.get() {
            // Without a watcher there is nobody to tell.
            let _nobody = agents.send(news);
        }
    }

    /// One task needs one worker. Where several capabilities are needed, not every listener of one has the others.
    fn wake_for_task(&self, capabilities: &[String], agent_id: &str, picky: bool) {
        match (agent_id, capabilities) {
            ("", []) if picky => self.work.wake(""),
            ("", []) => self.work.wake_one(""),
            ("", [only]) if !picky => self.work.wake_one(only),
            ("", [first, ..]) => self.work.wake(first),
            (agent_id, _) => self.work.wake(&format!("agent:{agent_id}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::sync::broadcast::error::TryRecvError;

    use super::*;

    fn happened(namespace: &Arc<str>, effect: Effect) -> Happened {
        Happened { namespace: namespace.clone(), effect }
    }

    /// Comes to so many namespaces that the hubs of those that nobody listens in are forgotten.
    fn sweep(hubs: &Hubs) {
        for number in 0..=NAMESPACES_BEFORE_SWEEP {
            drop(hubs.of(&number.to_string().into()));
        }
    }

    #[test]
    fn a_sweep_forgets_only_hubs_that_nobody_listens_in() {
        let (hubs, name): (Hubs, Arc<str>) = (Hubs::default(), "kept".into());
        let claims = hubs.of(&name).listen("a", &[]);
        let mut agents = hubs.of(&name).watch_agents();
        let mut work = hubs.of(&name).stand("a", "s");
        let lock = hubs.of(&name).lock_changed("db");
        sweep(&hubs);
        let mut claim = Box::pin(claims[0].notified());
        let mut wait = Box::pin(lock.notified());
        claim.as_mut().enable();
        wait.as_mut().enable();
        hubs.announce(&[
            happened(&name, Effect::StateReplaced),
            happened(&name, Effect::LockChanged { name: "db".to_owned() }),
        ]);
        assert!(matches!(agents.try_recv(), Ok(AgentNews::Replaced)));
        assert!(matches!(work.try_recv(), Ok(WorkNews::Replaced)));
        assert_eq!([claim.now_or_never(), wait.now_or_never()], [Some(()), Some(())]);
        drop((claims, agents, work, lock));
        sweep(&hubs);
        assert!(!hubs.by_namespace.lock().contains_key(&name));
    }

    #[test]
    fn a_watcher_of_agents_is_told_what_happens_from_then_on() {
        let hub = Arc::new(Hub::new());
        let changed = |rev| Effect::AgentChanged { agent: Box::default(), removed: false, rev };
        hub.announce(&changed(1));
        assert!(hub.agents.get().is_none(), "nobody watches: nothing is kept for watchers");
        let mut news = hub.watch_agents();
        hub.announce(&changed(2));
        assert!(matches!(news.try_recv(), Ok(AgentNews::Changed { rev: 2, .. })));
        for rev in 0..=WATCH_BUFFER as u64 {
            hub.announce(&changed(rev));
        }
        assert!(matches!(news.try_recv(), Err(TryRecvError::Lagged(_))), "too slow: it looks again");
    }
}
