//! What the bus should do, said again: every subscription with all that is in it, sorted anew whenever something is
//! asked. It keeps no index, and nothing here looks at the rows but [`BusModel::check`].
//!
//! Besides, a ledger. Whatever was accepted for a subscription is, at any time and for ever, exactly one of: waiting,
//! in flight, acknowledged, dead, expired, dropped; and it gets from one to another only as [`Queue::turn`] lets it.

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::v1::{
    AckItem, BusMessage, ConsumeRequest, Consumer, Overflow, PublishRequest, Published, PurgeDeadRequest, Quotas,
    RedriveDeadRequest, RejectionCode, Subscription, SubscriptionCounts, SubscriptionSpec,
};
use quorate_raft::state::bus;
use quorate_raft::storage::keys::Table;

use super::At;
use super::bus_queue::{Queue, later};
use super::view::{View, number, raw, text};

/// What the coordinator's own messages are marked with.
const NEWS: &str = "news";

#[derive(Debug, Clone, Default)]
pub(crate) struct BusModel {
    queues: BTreeMap<String, Queue>,
    /// Message ids, with the number of the message and when it is forgotten.
    ids: BTreeMap<String, (u64, u64)>,
    /// The number of the last message.
    last_seq: u64,
}

/// For each message of a request the subscriptions that it goes to.
type Plan = Vec<Vec<String>>;

impl BusModel {
    pub(crate) fn subscribe(&mut self, at: At, spec: &SubscriptionSpec) {
        let spec = filled(spec);
        match self.queues.get_mut(&spec.name) {
            Some(queue) => queue.row.spec = Some(spec),
            None => {
                self.queues.insert(spec.name.clone(), Queue::new(at, spec));
            }
        }
    }

    pub(crate) fn unsubscribe(&mut self, name: &str) {
        self.queues.remove(name);
    }

    pub(crate) fn consume(&mut self, at: At, req: &ConsumeRequest) {
        let consumer_id = or_session(&req.consumer_id, &req.session_id);
        let queue = self.queue(&req.subscription);
        let since_ms = queue.consumers.get(&consumer_id).map_or(at.now_ms, |known| known.since_ms);
        let row = Consumer {
            subscription: req.subscription.clone(),
            consumer_id: consumer_id.clone(),
            session_id: req.session_id.clone(),
            credit: req.credit.max(1),
            since_ms,
            in_flight: 0,
        };
        queue.consumers.insert(consumer_id, row);
    }

    /// Tells how many deliveries the consumer gave back.
    pub(crate) fn leave(&mut self, at: At, name: &str, consumer_id: &str, session_id: &str) -> u64 {
        let consumer_id = or_session(consumer_id, session_id);
        let queue = self.queue(name);
        let held = queue.those(|row| row.consumer_id == consumer_id);
        held.iter().for_each(|seq| queue.give_back(at, *seq));
        queue.consumers.remove(&consumer_id);
        held.len() as u64
    }

    /// Whether the delivery is under way, under this token.
    pub(crate) fn is_held(&self, item: &AckItem) -> bool {
        let row = self.queues.get(&item.subscription).and_then(|queue| queue.pending.get(&item.seq));
        row.is_some_and(|row| !row.consumer_id.is_empty() && row.token == item.token)
    }

    /// Does what is said of a delivery, if it is under way.
    pub(crate) fn ack(&mut self, at: At, item: &AckItem) -> bool {
        let is_held = self.is_held(item);
        if is_held {
            self.queue(&item.subscription).ack(at, item);
        }
        is_held
    }

    /// Where each message of a request goes, or why it is refused.
    pub(crate) fn plan(&self, at: At, req: &PublishRequest, quotas: &Quotas) -> Result<Plan, RejectionCode> {
        let name = req.ensure_subscription.as_str();
        let first = &req.messages[0].subject;
        if !name.is_empty() && req.messages.iter().any(|message| message.subject != *first) {
            return Err(RejectionCode::InvalidArgument);
        }
        let ensured = Some(name).filter(|name| !name.is_empty() && !self.queues.contains_key(*name));
        let (mut plan, mut more) = (Plan::new(), 0);
        let mut ids: BTreeSet<String> = BTreeSet::new();
        let mut entering: BTreeMap<String, u64> = BTreeMap::new();
        for message in &req.messages {
            if ids.contains(&message.id) || self.known(at, &message.id).is_some() {
                plan.push(Vec::new());
                continue;
            }
            let matched: BTreeSet<String> =
                self.matched(&message.subject).into_iter().chain(ensured.map(str::to_owned)).collect();
            if matched.is_empty() && req.must_match {
                return Err(RejectionCode::FailedPrecondition);
            }
            for queue in matched.iter().filter_map(|name| self.queues.get(name)).filter(|queue| !queue.drops_oldest()) {
                let entering = entering.entry(queue.spec().name.clone()).or_default();
                *entering += 1;
                if queue.pending.len() as u64 + *entering > queue.spec().max_messages {
                    return Err(RejectionCode::ResourceExhausted);
                }
            }
            if !matched.is_empty() {
                more += 1;
                ids.extend(Some(message.id.clone()).filter(|id| !id.is_empty()));
            }
            plan.push(matched.into_iter().collect());
        }
        if quotas.max_messages > 0 && more > 0 && self.kept() + more > quotas.max_messages {
            return Err(RejectionCode::ResourceExhausted);
        }
        Ok(plan)
    }

    /// Without a plan, as part of a transaction: to whoever matches when it is the message's turn.
    pub(crate) fn publish(&mut self, at: At, req: &PublishRequest, plan: Option<&[Vec<String>]>) -> Vec<Published> {
        let name = &req.ensure_subscription;
        if !name.is_empty() && !self.queues.contains_key(name) {
            let patterns = vec![req.messages[0].subject.clone()];
            self.subscribe(at, &SubscriptionSpec { name: name.clone(), patterns, ..SubscriptionSpec::default() });
        }
        let mut published = Vec::new();
        for (i, message) in req.messages.iter().enumerate() {
            if let Some(seq) = self.known(at, &message.id) {
                published.push(Published { seq, matched: 0, duplicate: true });
                continue;
            }
            let matched = plan.map_or_else(|| self.matched(&message.subject), |plan| plan[i].clone());
            let one = self.place(at, message.clone(), &matched);
            if one.matched > 0 && !message.id.is_empty() {
                self.ids.insert(message.id.clone(), (one.seq, at.now_ms + bus::REMEMBER_MS));
            }
            published.push(one);
        }
        published
    }

    /// The coordinator says something: a full subscription does without.
    pub(crate) fn news(&mut self, at: At, subject: &str) {
        let mut keepers = Vec::new();
        for name in self.matched(subject) {
            let queue = self.queue(&name);
            if queue.is_full() && !queue.drops_oldest() {
                queue.turn_away();
            } else {
                keepers.push(name);
            }
        }
        let message = BusMessage { subject: subject.to_owned(), r#type: NEWS.to_owned(), ..BusMessage::default() };
        self.place(at, message, &keepers);
    }

    /// Tells how many were redriven: as many as there is room for. One that others keep too is one more message.
    pub(crate) fn redrive(&mut self, at: At, req: &RedriveDeadRequest, quotas: &Quotas) -> u64 {
        let queue = self.queue(&req.subscription);
        let room = queue.spec().max_messages.saturating_sub(queue.pending.len() as u64);
        let named = queue.chosen(&req.seqs);
        let (mut chosen, mut more) = (Vec::new(), 0);
        for seq in named.into_iter().take(usize::try_from(room).unwrap_or(usize::MAX)) {
            let keepers = self.queues.values().filter(|queue| queue.messages.contains_key(&seq));
            more += u64::from(keepers.count() > 1);
            if more > 0 && quotas.max_messages > 0 && self.kept() + more > quotas.max_messages {
                break;
            }
            chosen.push(seq);
        }
        chosen.sort_unstable();
        for seq in &chosen {
            let message = self.queue(&req.subscription).forget_dead(*seq);
            self.place(at, BusMessage { delay_ms: 0, ..message }, std::slice::from_ref(&req.subscription));
        }
        chosen.len() as u64
    }

    /// Tells how many were purged.
    pub(crate) fn purge(&mut self, req: &PurgeDeadRequest) -> u64 {
        let queue = self.queue(&req.subscription);
        let chosen = queue.chosen(&req.seqs);
        chosen.iter().for_each(|seq| drop(queue.forget_dead(*seq)));
        chosen.len() as u64
    }

    /// Its subscriptions go; what its consumers held has failed.
    pub(crate) fn session_ended(&mut self, at: At, session_id: &str) {
        self.queues.retain(|_, queue| queue.spec().session_id != session_id);
        for queue in self.queues.values_mut() {
            let of_session = |consumer: &&Consumer| consumer.session_id == session_id;
            let ids: Vec<String> =
                queue.consumers.values().filter(of_session).map(|consumer| consumer.consumer_id.clone()).collect();
            for consumer_id in ids {
                for seq in queue.those(|row| row.consumer_id == consumer_id) {
                    queue.fail(at, seq, "session ended", None);
                }
                queue.consumers.remove(&consumer_id);
            }
        }
    }

    pub(crate) fn tick(&mut self, at: At) {
        self.queues.values_mut().for_each(|queue| queue.tick(at));
        self.ids.retain(|_, (_, until_ms)| *until_ms > at.now_ms);
    }

    /// What every command ends with.
    pub(crate) fn settle(&mut self, at: At) {
        self.queues.values_mut().for_each(|queue| queue.assign(at));
    }

    fn queue(&mut self, name: &str) -> &mut Queue {
        self.queues.get_mut(name).unwrap_or_else(|| panic!("no subscription {name:?}"))
    }

    fn known(&self, at: At, id: &str) -> Option<u64> {
        self.ids.get(id).filter(|(_, until_ms)| *until_ms > at.now_ms).map(|(seq, _)| *seq)
    }

    /// By name.
    fn matched(&self, subject: &str) -> Vec<String> {
        let asks = |queue: &Queue| queue.spec().patterns.iter().any(|pattern| matches(pattern, subject));
        self.queues.iter().filter(|(_, queue)| asks(queue)).map(|(name, _)| name.clone()).collect()
    }

    /// How many messages are stored: one is one, however many subscriptions keep it, alive or dead.
    fn kept(&self) -> u64 {
        let messages: BTreeSet<&u64> = self.queues.values().flat_map(|queue| queue.messages.keys()).collect();
        messages.len() as u64
    }

    fn place(&mut self, at: At, mut message: BusMessage, names: &[String]) -> Published {
        let mut keepers: Vec<&String> = Vec::new();
        for name in names {
            if self.queue(name).make_room() {
                keepers.push(name);
            }
        }
        if keepers.is_empty() {
            return Published::default();
        }
        self.last_seq += 1;
        message.seq = self.last_seq;
        message.published_at_ms = at.now_ms;
        message.expires_at_ms = later(at, message.ttl_ms);
        message.payload_bytes = message.payload.len() as u32;
        for name in &keepers {
            self.queue(name).enter(at, &message);
        }
        Published { seq: message.seq, matched: keepers.len() as u32, duplicate: false }
    }

    /// The rows are what the model has; and what the ledger says is what the rows say.
    pub(crate) fn check(&self, view: &View) {
        let subs: BTreeMap<String, Subscription> =
            self.queues.iter().map(|(name, queue)| (name.clone(), queue.row.clone())).collect();
        assert_eq!(view.subs, subs, "subscriptions");
        let (mut pending, mut consumers) = (BTreeMap::new(), BTreeMap::new());
        let (mut dead, mut messages) = (BTreeMap::new(), BTreeMap::new());
        for (name, queue) in &self.queues {
            let of_it = |seq: &u64| (name.clone(), *seq);
            pending.extend(queue.pending.iter().map(|(seq, row)| (of_it(seq), row.clone())));
            dead.extend(queue.dead.iter().map(|(seq, row)| (of_it(seq), row.clone())));
            consumers.extend(queue.consumers.iter().map(|(id, row)| ((name.clone(), id.clone()), row.clone())));
            messages.extend(queue.messages.clone());
        }
        assert_eq!(view.consumers, consumers, "consumers");
        assert_eq!(view.pending, pending, "messages in subscriptions");
        let found: BTreeMap<u64, BusMessage> = view.messages.iter().map(|(seq, row)| (*seq, plain(row))).collect();
        assert_eq!(found, messages, "messages");
        assert_eq!(view.dead, dead, "dead messages");
        let counted = self.queues.iter().map(|(name, queue)| (name.clone(), queue.counts));
        let counted = counted.filter(|(_, counts)| *counts != SubscriptionCounts::default());
        assert_eq!(view.counts, counted.collect::<BTreeMap<String, SubscriptionCounts>>(), "counters");
        let ids =
            raw(&view.rows, Table::MessageId).map(|(id, value)| (text(id), (number(&value[..8]), number(&value[8..]))));
        assert_eq!(ids.collect::<BTreeMap<String, (u64, u64)>>(), self.ids, "message ids");
        self.queues.iter().for_each(|(name, queue)| queue.check_ledger(name, view));
    }
}

fn or_session(consumer_id: &str, session_id: &str) -> String {
    if consumer_id.is_empty() { session_id.to_owned() } else { consumer_id.to_owned() }
}

/// A specification with what it leaves out.
fn filled(spec: &SubscriptionSpec) -> SubscriptionSpec {
    let or = |given: u64, otherwise: u64| if given == 0 { otherwise } else { given };
    let overflow = match spec.overflow() {
        Overflow::Unspecified if spec.session_id.is_empty() => Overflow::Reject,
        Overflow::Unspecified => Overflow::DropOldest,
        given => given,
    };
    let patterns: BTreeSet<String> = spec.patterns.iter().cloned().collect();
    let backoff_ms =
        if spec.backoff_ms.is_empty() { bus::DEFAULT_BACKOFF_MS.to_vec() } else { spec.backoff_ms.clone() };
    SubscriptionSpec {
        patterns: patterns.into_iter().collect(),
        max_attempts: or(spec.max_attempts.into(), bus::DEFAULT_ATTEMPTS.into()) as u32,
        backoff_ms,
        max_messages: or(spec.max_messages, bus::DEFAULT_MAX_MESSAGES),
        overflow: overflow as i32,
        ..spec.clone()
    }
}

fn matches(pattern: &str, subject: &str) -> bool {
    let (mut wanted, mut given) = (pattern.split('.'), subject.split('.'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some(">"), Some(_)) => return true,
            (Some(wanted), Some(given)) if wanted == "*" || wanted == given => {}
            _ => return false,
        }
    }
}

/// Of the coordinator's news, only what they are about: who says it and the words are checked elsewhere.
fn plain(message: &BusMessage) -> BusMessage {
    if message.r#type != NEWS {
        return message.clone();
    }
    BusMessage {
        from: String::new(),
        task_id: String::new(),
        payload: bytes::Bytes::new(),
        payload_bytes: 0,
        ..message.clone()
    }
}
