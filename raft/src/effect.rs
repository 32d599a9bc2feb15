//! What a node may do once a command is applied: wake a claim that waits, tell a watcher.
//!
//! Effects are hints to this process, never state. Losing one costs latency, not correctness: whoever waits looks at
//! the state again after a while. Deliberately absent: anything a replica would have to remember.

use quorate_proto::v1::{Agent, BreakerState};

/// One thing that happened, for whoever listens on this node.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// A snapshot replaced the whole state: whatever was derived from earlier effects is void.
    StateReplaced,
    /// A task with these requirements became ready.
    TaskReady {
        /// Capabilities an agent must offer, sorted.
        capabilities: Vec<String>,
        /// Only this agent may do it; empty: any.
        agent_id: String,
        /// It asks for more than capabilities: not everybody who offers those may do it.
        picky: bool,
    },
    /// An agent gained capacity, capabilities or its availability: a claim that waits for it may succeed now.
    AgentReady {
        /// Which agent.
        agent_id: String,
    },
    /// An agent's record changed (load included) or went away.
    AgentChanged {
        /// The record after the change; before it, if removed.
        agent: Box<Agent>,
        /// The record no longer exists.
        removed: bool,
        /// When.
        rev: u64,
    },
    /// A task was pushed to an agent with a standing order.
    Assigned {
        /// To whom.
        agent_id: String,
        /// What.
        task_id: String,
        /// Under which token.
        token: u64,
    },
    /// An attempt must stop, or has been fenced.
    Revoked {
        /// Whose.
        agent_id: String,
        /// Of which task.
        task_id: String,
        /// Under which token.
        token: u64,
        /// How long the worker has to say that it stopped; 0: it is fenced.
        grace_ms: u64,
        /// For people.
        reason: String,
    },
    /// More could be assigned than one command may: a tick goes on with it.
    WorkLeft,
    /// A limit, a share or the dispatch policy changed: more may run now.
    LimitsChanged,
    /// A breaker changed its state.
    BreakerChanged {
        /// Which.
        name: String,
        /// To what.
        state: BreakerState,
        /// When.
        rev: u64,
    },
    /// A schedule was created, changed or removed.
    SchedulesChanged,
    /// A tick of a schedule submitted a task.
    ScheduleFired {
        /// Which schedule.
        schedule_id: String,
        /// Which tick.
        tick_ms: u64,
        /// The task.
        task_id: String,
        /// When.
        rev: u64,
    },
    /// An attempt ran out of its time, or a task out of its.
    TaskTimedOut {
        /// Which task.
        task_id: String,
        /// The attempt's token; 0: the task itself.
        token: u64,
    },
    /// A circle of tasks that waited for each other was broken.
    DeadlockResolved {
        /// Who gave way.
        victim: String,
        /// The circle.
        task_ids: Vec<String>,
    },
    /// A lock was granted, released, or its line changed.
    LockChanged {
        /// Which.
        name: String,
    },
    /// A message was assigned to a consumer.
    Delivered {
        /// In which subscription.
        subscription: String,
        /// To whom.
        consumer_id: String,
        /// Which message.
        seq: u64,
        /// Under which token.
        token: u64,
    },
    /// A delivery was taken away: its time was up, or its message is gone.
    DeliveryGone {
        /// In which subscription.
        subscription: String,
        /// From whom.
        consumer_id: String,
        /// Which message.
        seq: u64,
        /// Under which token.
        token: u64,
    },
    /// A consumer is none any more.
    ConsumerGone {
        /// In which subscription.
        subscription: String,
        /// Who.
        consumer_id: String,
    },
    /// More messages could be assigned than one command may: a tick goes on with them.
    BusLeft,
    /// A session was opened or resumed: the leader starts its deadline.
    SessionOpened {
        /// Which session.
        session_id: String,
        /// Its epoch now.
        epoch: u64,
        /// Its time to live.
        ttl_ms: u64,
    },
    /// A session ended: the leader forgets its deadline.
    SessionEnded {
        /// Which session.
        session_id: String,
    },
}

impl Effect {
    /// Whether it may let a task be assigned that could not be before.
    pub fn lets_work_start(&self) -> bool {
        match self {
            Effect::TaskReady { .. } | Effect::AgentReady { .. } | Effect::LimitsChanged | Effect::WorkLeft => true,
            Effect::BreakerChanged { state, .. } => *state != BreakerState::Open,
            _ => false,
        }
    }
}
