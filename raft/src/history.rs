//! The event history: what each command changed, object by object, in the order of the revs.
//!
//! An event is not said by a room. It is read off the rows that a command wrote: an object that has a row after the
//! command was put, one that has none was deleted. So no room can forget to tell, and the events of all revs, applied in
//! order to nothing, give the rows as they are. Several writes of one object in one command are one event.
//!
//! Owns which tables are objects that people watch, and how an object's key is made from a row's. Deliberately absent:
//! messages of the bus, which a subscription brings; rows that only serve as indexes, counters or bodies of other rows.
//!
//! The history is no part of the state that commands read, nor of the digest. It goes, oldest first, by a command.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use quorate_proto::log::StoredEvents;
use quorate_proto::v1::{Event, EventKind, WatchFilter};

use crate::error::Fatal;
use crate::state::Ctx;
use crate::storage::keys::{Key, Table};
use crate::storage::rows::Rows;
use crate::storage::txn::Txn;

/// A kind of object.
struct Room {
    name: &'static str,
    /// Where its rows are: an object is in one of them.
    tables: &'static [Table],
    /// What their keys consist of.
    key: &'static [Part],
}

#[derive(Clone, Copy)]
enum Part {
    Text,
    Number,
    /// A number counted down from the greatest, so that the newest comes first.
    Reversed,
}

use Part::{Number, Reversed, Text};

const ROOMS: &[Room] = &[
    Room { name: "sessions", tables: &[Table::Session], key: &[Text] },
    Room { name: "agents", tables: &[Table::Agent], key: &[Text] },
    Room { name: "tasks", tables: &[Table::LiveTask, Table::DoneTask], key: &[Text] },
    Room { name: "attempts", tables: &[Table::Attempt], key: &[Text, Number] },
    Room { name: "locks", tables: &[Table::Lock], key: &[Text] },
    Room { name: "scopes", tables: &[Table::Scope], key: &[Text] },
    Room { name: "kv", tables: &[Table::Kv], key: &[Text] },
    Room { name: "subscriptions", tables: &[Table::Subscription], key: &[Text] },
    Room { name: "dead_messages", tables: &[Table::DeadMessage], key: &[Text, Number] },
    Room { name: "breakers", tables: &[Table::Breaker], key: &[Text] },
    Room { name: "schedules", tables: &[Table::Schedule], key: &[Text] },
    Room { name: "runs", tables: &[Table::ScheduleRun], key: &[Text, Reversed] },
    Room { name: "limits", tables: &[Table::Limit], key: &[Number, Text] },
    Room { name: "shares", tables: &[Table::ShareWeight], key: &[Text] },
    Room { name: "retries", tables: &[Table::RetryProfile], key: &[Text] },
    Room { name: "checkpoints", tables: &[Table::Checkpoint], key: &[Reversed, Text, Text, Text, Text] },
];

/// The rooms that can be watched.
pub fn rooms() -> impl Iterator<Item = &'static str> {
    ROOMS.iter().map(|room| room.name)
}

fn room_of(tag: u8) -> Option<&'static Room> {
    ROOMS.iter().find(|room| room.tables.iter().any(|table| *table as u8 == tag))
}

/// Adds what the command changed to the history. `written`: the keys it wrote, in order.
pub(crate) fn record(txn: &mut Txn<'_>, ctx: &Ctx, namespace: u64, written: &[Vec<u8>]) -> Result<(), Fatal> {
    let mut seen = BTreeSet::new();
    let mut events = Vec::new();
    for key in written {
        let Some((tag, rest)) = key.split_first() else { continue };
        let Some(room) = room_of(*tag) else { continue };
        if seen.insert((room.name, rest)) {
            events.push(event(txn, ctx, room, rest)?);
        }
    }
    if !events.is_empty() {
        txn.put_events(ctx.rev, namespace, StoredEvents { namespace, events }.encode_to_vec().into());
    }
    Ok(())
}

fn event(rows: &dyn Rows, ctx: &Ctx, room: &Room, rest: &[u8]) -> Result<Event, Fatal> {
    let mut value = None;
    for table in room.tables {
        value = rows.get_bytes(Key::table(*table).bytes(rest).as_bytes())?;
        if value.is_some() {
            break;
        }
    }
    let kind = if value.is_some() { EventKind::Put } else { EventKind::Delete };
    Ok(Event {
        rev: ctx.rev,
        at_ms: ctx.now_ms,
        room: room.name.to_owned(),
        key: object_key(room, rest)?,
        kind: kind as i32,
        value: value.unwrap_or_default(),
    })
}

/// The key of an object as people write it: the parts of its row's key, divided by slashes.
fn object_key(room: &Room, rest: &[u8]) -> Result<String, Fatal> {
    let corrupt = || Fatal::Corrupt(format!("not the key of one of the {}: {rest:?}", room.name));
    let mut left = rest;
    let mut parts = Vec::with_capacity(room.key.len());
    for part in room.key {
        if let Text = part {
            let end = left.iter().position(|byte| *byte == 0).ok_or_else(corrupt)?;
            parts.push(std::str::from_utf8(&left[..end]).map_err(|_| corrupt())?.to_owned());
            left = &left[end + 1..];
        } else {
            let (number, after) = left.split_first_chunk::<8>().ok_or_else(corrupt)?;
            let number = u64::from_be_bytes(*number);
            parts.push(if let Reversed = part { u64::MAX - number } else { number }.to_string());
            left = after;
        }
    }
    if left.is_empty() { Ok(parts.join("/")) } else { Err(corrupt()) }
}

/// Whether an event is one of those asked for; no filter asks for all.
pub fn matches(filters: &[WatchFilter], event: &Event) -> bool {
    let passes = |filter: &WatchFilter| {
        (filter.room.is_empty() || filter.room == event.room)
            && (filter.key.is_empty() || filter.key == event.key)
            && event.key.starts_with(&filter.prefix)
    };
    filters.is_empty() || filters.iter().any(passes)
}

/// Every object as it is now, by room and key: what all events of a namespace, applied in order to nothing, must give.
pub fn objects(rows: &dyn Rows) -> Result<BTreeMap<(&'static str, String), Bytes>, Fatal> {
    let mut objects = BTreeMap::new();
    for room in ROOMS {
        for table in room.tables {
            let prefix = Key::table(*table);
            rows.scan(prefix.as_bytes(), &prefix.prefix_end(), &mut |key, value| {
                objects.insert((room.name, object_key(room, &key[1..])?), Bytes::copy_from_slice(value));
                Ok(true)
            })?;
        }
    }
    Ok(objects)
}

/// A row of the history.
pub fn decode(value: &[u8]) -> Result<StoredEvents, Fatal> {
    Ok(StoredEvents::decode(Bytes::copy_from_slice(value))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_an_object_is_read_off_its_row() {
        let room = |name: &str| ROOMS.iter().find(|room| room.name == name).unwrap();
        let shown = |name: &str, key: Key| object_key(room(name), &key.as_bytes()[1..]).unwrap();
        assert_eq!(shown("tasks", Key::table(Table::LiveTask).text("a/b")), "a/b");
        assert_eq!(shown("attempts", Key::table(Table::Attempt).text("t").number(3)), "t/3");
        assert_eq!(shown("runs", Key::table(Table::ScheduleRun).text("nightly").number(u64::MAX - 7)), "nightly/7");
        assert_eq!(shown("limits", Key::table(Table::Limit).number(3).text("gpu")), "3/gpu");
        let checkpoint =
            Key::table(Table::Checkpoint).number(u64::MAX - 9).text("p").text("").text("").text("tasks:10");
        assert_eq!(shown("checkpoints", checkpoint), "9/p///tasks:10");
        assert!(object_key(room("tasks"), b"no end").is_err());
        assert!(object_key(room("tasks"), b"more\0than one").is_err());
    }

    #[test]
    fn no_table_belongs_to_two_rooms() {
        let tags: Vec<u8> = ROOMS.iter().flat_map(|room| room.tables).map(|table| *table as u8).collect();
        let distinct: BTreeSet<u8> = tags.iter().copied().collect();
        assert_eq!(tags.len(), distinct.len());
    }

    #[test]
    fn a_filter_names_a_room_a_key_or_a_prefix() {
        let event = Event { room: "kv".to_owned(), key: "agents/a1/state".to_owned(), ..Event::default() };
        let filter = |room: &str, key: &str, prefix: &str| WatchFilter {
            room: room.to_owned(),
            key: key.to_owned(),
            prefix: prefix.to_owned(),
        };
        for (filter, passes) in [
            (filter("kv", "", ""), true),
            (filter("", "agents/a1/state", ""), true),
            (filter("kv", "", "agents/"), true),
            (filter("tasks", "", ""), false),
            (filter("kv", "agents", ""), false),
            (filter("kv", "", "agents/b"), false),
        ] {
            assert_eq!(matches(std::slice::from_ref(&filter), &event), passes, "{filter:?}");
        }
        assert!(matches(&[], &event));
        assert!(matches(&[filter("tasks", "", ""), filter("kv", "", "")], &event), "any of them");
    }
}
