//! Reads: subscriptions and how they stand, what a consumer holds, deliveries, dead messages.

use std::ops::Bound;

use prost::Message;
use quorate_proto::v1::{Consumer, DeadMessage, Delivery, Subscription, SubscriptionCounts, SubscriptionStats};

use super::queue::Member;
use super::{Bus, load, messages, name_in};
use crate::error::Fatal;
use crate::storage::keys::{Key, Table};
use crate::storage::rows::Rows;

impl Bus {
    /// One subscription, being removed or not.
    pub fn subscription(&self, name: &str) -> Option<&Subscription> {
        self.subs.get(name).map(|sub| &sub.row)
    }

    /// Subscriptions with names after this one, by name, at most `limit`.
    pub fn subscriptions(&self, after: &str, limit: usize) -> Vec<&Subscription> {
        let from = (Bound::Excluded(after), Bound::Unbounded);
        self.subs.range::<str, _>(from).take(limit).map(|(_, sub)| &sub.row).collect()
    }

    /// How many subscriptions there are.
    pub fn len(&self) -> usize {
        self.subs.len()
    }

    /// Whether there is no subscription.
    pub fn is_empty(&self) -> bool {
        self.subs.is_empty()
    }

    /// How a subscription stands; all zero if there is none.
    pub fn stats(&self, name: &str) -> SubscriptionStats {
        let Some(sub) = self.subs.get(name) else { return SubscriptionStats::default() };
        let of = |member: &Member| Consumer {
            in_flight: u32::try_from(member.held().len()).unwrap_or(u32::MAX),
            ..member.row.clone()
        };
        SubscriptionStats {
            waiting: sub.queue.waiting() as u64,
            delayed: sub.queue.delayed() as u64,
            in_flight: sub.queue.in_flight() as u64,
            dead: sub.dead,
            consumers: sub.queue.members().map(of).collect(),
        }
    }

    /// What became of a subscription's messages; all zero if there is none.
    pub fn counts(&self, name: &str) -> SubscriptionCounts {
        self.subs.get(name).map(|sub| sub.counts).unwrap_or_default()
    }

    /// What a consumer holds, as number and token, in the order in which it was assigned.
    pub fn held(&self, subscription: &str, consumer_id: &str) -> Vec<(u64, u64)> {
        let member = self.subs.get(subscription).and_then(|sub| sub.queue.member(consumer_id));
        member.into_iter().flat_map(|member| member.held()).collect()
    }

    /// A consumer of a subscription. Its `in_flight` is 0 here: [`Bus::stats`] counts.
    pub fn consumer(&self, subscription: &str, consumer_id: &str) -> Option<&Consumer> {
        self.subs.get(subscription)?.queue.member(consumer_id).map(|member| &member.row)
    }

    /// A delivery with its payload; `None` once it is over.
    pub fn delivery(
        &self,
        rows: &dyn Rows,
        subscription: &str,
        seq: u64,
        token: u64,
    ) -> Result<Option<Delivery>, Fatal> {
        let held = self.subs.get(subscription).and_then(|sub| sub.queue.held(seq));
        if held.is_none_or(|held| held.token != token) {
            return Ok(None);
        }
        let row = load(rows, subscription, seq)?;
        Ok(Some(Delivery {
            subscription: row.subscription,
            message: Some(messages::whole(rows, seq)?),
            token,
            attempt: row.attempts + 1,
            deadline_ms: row.deadline_ms,
        }))
    }

    /// Dead messages, oldest first: of one subscription those after `after_seq`, or of all of them (`subscription` is
    /// empty) by name. At most `limit`, and no more once `max_bytes` are reached.
    pub fn dead(
        &self,
        rows: &dyn Rows,
        subscription: &str,
        after_seq: u64,
        limit: usize,
        max_bytes: usize,
        without_payloads: bool,
    ) -> Result<Vec<DeadMessage>, Fatal> {
        let table = Key::table(Table::DeadMessage);
        let (from, to) = match subscription {
            "" => (table.clone(), table.prefix_end()),
            name => {
                let of_sub = table.text(name);
                let to = of_sub.prefix_end();
                (of_sub.number(after_seq.saturating_add(1)), to)
            }
        };
        let (mut found, mut bytes) = (Vec::new(), 0);
        if limit == 0 {
            return Ok(found);
        }
        rows.scan(from.as_bytes(), &to, &mut |key, value| {
            if self.removing.contains(name_in(key)?) {
                return Ok(true);
            }
            let mut dead = DeadMessage::decode(value)?;
            dead.message = Some(match without_payloads {
                true => messages::light(rows, dead.seq)?,
                false => messages::whole(rows, dead.seq)?,
            });
            bytes += dead.encoded_len();
            found.push(dead);
            Ok(found.len() < limit && bytes < max_bytes)
        })?;
        Ok(found)
    }

    /// How many dead messages a subscription has; all of them together if it is empty.
    pub fn dead_total(&self, subscription: &str) -> u64 {
        match subscription {
            "" => self.dead_total,
            name => self.subs.get(name).map_or(0, |sub| sub.dead),
        }
    }

    /// How many messages are stored, those that are only dead included, and how many bytes they take.
    pub fn totals(&self) -> (u64, u64) {
        (self.totals.messages, self.totals.bytes)
    }
}
