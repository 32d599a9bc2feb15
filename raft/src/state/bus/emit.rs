//! What the coordinator itself says. Nobody can be refused for it, so whoever has no room does without, and so does
//! everyone once the messages of one command have made as many copies as a request may: what happens in one command is
//! bounded, who asks to hear of it is not.

use std::collections::BTreeMap;
use std::sync::Arc;

use quorate_proto::v1::BusMessage;

use super::{Bus, MAX_MATCHED, MAX_PLACED, publish};
use crate::error::Fatal;
use crate::state::{Ctx, Out, Rooms};

/// Says these. What a subscription does without counts there as dropped.
pub fn emit(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, messages: Vec<BusMessage>) -> Result<(), Fatal> {
    let bus = &mut rooms.bus;
    let mut audiences: BTreeMap<String, Audience> = BTreeMap::new();
    let mut left = MAX_PLACED;
    for message in messages {
        let subject = message.subject.as_str();
        let audience = audiences.entry(subject.to_owned()).or_insert_with(|| Audience::of(bus, subject));
        audience.close(bus, left)?;
        left -= audience.open.len();
        publish::place(bus, out, ctx, message, &audience.open)?;
    }
    for audience in audiences.into_values() {
        for (name, before) in audience.closed {
            bus.count(&name, |counts| counts.dropped += audience.said - before)?;
        }
    }
    Ok(())
}

/// Who asks to hear of one subject. It does not change in a command, and a subscription without room gets none.
#[derive(Default)]
struct Audience {
    /// Those that hear what is said.
    open: Vec<Arc<str>>,
    /// Those that hear no more of it, each with how much was said before.
    closed: Vec<(Arc<str>, u64)>,
    said: u64,
}

impl Audience {
    fn of(bus: &Bus, subject: &str) -> Self {
        // What the coordinator says has short subjects: there are few ways through the patterns.
        let mut visits = usize::MAX;
        let found = bus.patterns.find(subject, MAX_MATCHED, &mut visits).unwrap_or_default();
        Audience { open: found.into_iter().take(MAX_MATCHED).collect(), ..Audience::default() }
    }

    /// One more is said. Those without room hear no more from now on, nor those for whom no copies are left.
    fn close(&mut self, bus: &Bus, copies: usize) -> Result<(), Fatal> {
        let mut open = Vec::with_capacity(self.open.len());
        for name in std::mem::take(&mut self.open) {
            let sub = bus.sub(&name)?;
            let is_shut = sub.is_full() && !sub.rules.drops_oldest;
            if is_shut || open.len() >= copies {
                self.closed.push((name, self.said));
            } else {
                open.push(name);
            }
        }
        self.open = open;
        self.said += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::{Subscription, SubscriptionCounts};

    use super::*;
    use crate::state::bus::{Sub, checked, settle};
    use crate::storage::rows::MemoryRows;
    use crate::storage::txn::Txn;

    const CTX: Ctx = Ctx { now_ms: 1_000, rev: 1, entropy: 0 };

    fn subscribe(bus: &mut Bus, name: &str, pattern: &str, max_messages: u64) {
        let mut spec = checked::default_spec(name, pattern);
        spec.max_messages = max_messages;
        bus.add(Sub::new(Subscription { spec: Some(spec), ..Subscription::default() }).unwrap());
    }

    /// Says so many things, in turn under each of these subjects.
    fn say(rooms: &mut Rooms, subjects: &[&str], times: usize) {
        let base = MemoryRows::default();
        let (mut txn, mut effects) = (Txn::new(&base, 0), Vec::new());
        let mut out = Out { txn: &mut txn, effects: &mut effects };
        let message = |subject: &&str| BusMessage { subject: (*subject).to_owned(), ..BusMessage::default() };
        let messages = subjects.iter().cycle().take(times).map(message).collect();
        emit(rooms, &mut out, &CTX, messages).unwrap();
        settle(rooms, &mut out, &CTX).unwrap();
    }

    fn heard(rooms: &Rooms, name: &str) -> (u64, u64) {
        let SubscriptionCounts { published, dropped, .. } = rooms.bus.counts(name);
        (published, dropped)
    }

    #[test]
    fn who_has_no_room_does_without() {
        let mut rooms = Rooms::default();
        subscribe(&mut rooms.bus, "all", "system.>", 9);
        subscribe(&mut rooms.bus, "some", "system.>", 2);
        subscribe(&mut rooms.bus, "one", "system.b", 1);
        say(&mut rooms, &["system.a", "system.b"], 6);
        assert_eq!(["all", "some", "one"].map(|name| heard(&rooms, name)), [(6, 0), (2, 4), (1, 2)]);
        assert_eq!(rooms.bus.totals().0, 6);
    }

    #[test]
    fn the_copies_of_one_command_are_bounded() {
        let mut rooms = Rooms::default();
        let subscriptions = 3_000;
        for i in 0..subscriptions {
            subscribe(&mut rooms.bus, &format!("s{i:04}"), "system.*", 100);
        }
        // Six times all of them and once two thirds: after that nobody hears.
        assert_eq!(MAX_PLACED, 6 * subscriptions + 2_000);
        say(&mut rooms, &["system.a", "system.b"], 9);
        let counts = |i: usize| heard(&rooms, &format!("s{i:04}"));
        assert_eq!((counts(0), counts(1_999)), ((7, 2), (7, 2)));
        assert_eq!((counts(2_000), counts(2_999)), ((6, 3), (6, 3)));
        assert_eq!(rooms.bus.totals().0, 7, "what nobody hears is not kept");
    }
}
