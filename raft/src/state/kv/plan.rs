//! What a write would do: every refusal is made here, and nothing is written.
//!
//! A command plans, looks whether there is room for all of it ([`Growth`]), and only then writes ([`super::write`]). A
//! transaction does so with many plans; no two of them may be about one key.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_proto::v1::{
    KvCondition, KvDeleteRequest, KvEntry, KvMerge, KvPutRequest, KvRollbackRequest, kv_condition,
};

use super::merge::{self, MAX_DEPTH, MAX_TAKEN_APART, Refused};
use super::{MAX_VALUE_BYTES, burden, checked, current, newest_kept, read, weight};
use crate::error::{Error, Fatal, Outcome, exhausted, invalid, not_found, precondition};
use crate::faults::{Bug, planted};
use crate::state::{Ctx, Rooms};
use crate::storage::rows::Rows;

/// The most keys that may go with one session: its end removes them all at once.
const MAX_LEASES: u64 = 10_000;
/// The most bytes of documents that may, labels and all; each MiB of a blob counts as one KiB.
const MAX_LEASED_BYTES: u64 = 64 << 20;

/// One write that nothing stands against.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Planned {
    /// What is there now.
    pub(super) before: Option<KvEntry>,
    /// What will be; a removal if `deleted`.
    pub(super) after: KvEntry,
    /// How many bytes the merge took apart, each as often as it did.
    pub(super) taken_apart: u64,
}

impl Planned {
    /// About how many bytes it moves: what was there becomes an earlier version, what will be is new.
    pub(crate) fn burden(&self) -> u64 {
        self.before.as_ref().map_or(0, burden) + burden(&self.after) + self.taken_apart
    }

    /// A removal of what is there.
    pub(super) fn removal(before: KvEntry, ctx: &Ctx, updated_by: &str) -> Self {
        let after = KvEntry {
            key: before.key.clone(),
            version: before.version + 1,
            create_rev: before.create_rev,
            mod_rev: ctx.rev,
            updated_at_ms: ctx.now_ms,
            updated_by: updated_by.to_owned(),
            deleted: true,
            ..KvEntry::default()
        };
        Planned { before: Some(before), after, taken_apart: 0 }
    }

    /// The document after it, if there will be one.
    fn document(&self) -> Option<&KvEntry> {
        Some(&self.after).filter(|after| !after.deleted)
    }
}

/// Plans a put. `at` is what the fields' names begin with: empty, or such as `ops[3].put.`. Whether the namespace has
/// room is a matter of all that a command writes: [`Growth::check`].
pub(crate) fn check_put(rooms: &Rooms, rows: &dyn Rows, ctx: &Ctx, req: &KvPutRequest, at: &str) -> Outcome<Planned> {
    checked::put(req, at)?;
    let before = current(rows, &req.key)?;
    check_mod_rev(&req.key, before.as_ref(), req.if_mod_rev, at)?;
    if req.if_absent && before.is_some() {
        let field = format!("{at}if_absent");
        return Err(precondition(&field, format!("{}; {field} wants none", stands(&req.key, before.as_ref()))));
    }
    if !req.session_id.is_empty() && rooms.sessions.get(&req.session_id).is_none() {
        let message = format!("session {:?} has ended or never was; open one first", req.session_id);
        return Err(not_found(&format!("{at}session_id"), message));
    }
    let (value, taken_apart) = merged(req, before.as_ref(), at)?;
    let kept = |given: &String, of: fn(&KvEntry) -> &String| match &before {
        Some(before) if given.is_empty() => of(before).clone(),
        _ => given.clone(),
    };
    let labels = match &before {
        Some(before) if req.labels.is_empty() => before.labels.clone(),
        _ => req.labels.clone(),
    };
    let after = KvEntry {
        key: req.key.clone(),
        value,
        blob: req.blob.clone(),
        version: next_version(rows, &req.key, before.as_ref())?,
        create_rev: before.as_ref().map_or(ctx.rev, |before| before.create_rev),
        mod_rev: ctx.rev,
        updated_at_ms: ctx.now_ms,
        session_id: req.session_id.clone(),
        expires_at_ms: if req.ttl_ms > 0 { ctx.now_ms.saturating_add(req.ttl_ms) } else { 0 },
        content_type: kept(&req.content_type, |before| &before.content_type),
        project_id: kept(&req.project_id, |before| &before.project_id),
        labels,
        updated_by: req.updated_by.clone(),
        deleted: false,
        superseded_at_ms: 0,
    };
    Ok(Planned { before, after, taken_apart })
}

/// Plans a removal; `None` if there is nothing to remove.
pub(crate) fn check_delete(rows: &dyn Rows, ctx: &Ctx, req: &KvDeleteRequest, at: &str) -> Outcome<Option<Planned>> {
    checked::key(&format!("{at}key"), &req.key)?;
    checked::updated_by(at, &req.updated_by)?;
    let before = current(rows, &req.key)?;
    check_mod_rev(&req.key, before.as_ref(), req.if_mod_rev, at)?;
    Ok(before.map(|before| Planned::removal(before, ctx, &req.updated_by)))
}

/// Plans to write an earlier version anew. What it says of itself comes with it; a session and a time do not.
pub(super) fn check_rollback(rows: &dyn Rows, ctx: &Ctx, req: &KvRollbackRequest) -> Outcome<Planned> {
    checked::key("key", &req.key)?;
    checked::updated_by("", &req.updated_by)?;
    if req.version == 0 {
        return Err(invalid("version", "version must be 1 or more"));
    }
    let before = current(rows, &req.key)?;
    check_mod_rev(&req.key, before.as_ref(), req.if_mod_rev, "")?;
    let Some(earlier) = read::version(rows, &req.key, req.version)? else {
        let message = format!("version {} of key {:?} is not kept, or is a removal", req.version, req.key);
        return Err(not_found("version", message));
    };
    let after = KvEntry {
        version: next_version(rows, &req.key, before.as_ref())?,
        create_rev: before.as_ref().map_or(ctx.rev, |before| before.create_rev),
        mod_rev: ctx.rev,
        updated_at_ms: ctx.now_ms,
        session_id: String::new(),
        expires_at_ms: 0,
        updated_by: req.updated_by.clone(),
        superseded_at_ms: 0,
        ..earlier
    };
    Ok(Planned { before, after, taken_apart: 0 })
}

/// Refuses if a condition does not hold. `at` is what the fields' names begin with, such as `conditions[2].`.
pub(crate) fn check_condition(rows: &dyn Rows, condition: &KvCondition, at: &str) -> Outcome<()> {
    use kv_condition::Test;
    checked::key(&format!("{at}key"), &condition.key)?;
    let Some(test) = &condition.test else {
        let field = format!("{at}test");
        return Err(invalid(&field, format!("{field} must be exists, mod_rev, version or value")));
    };
    let is = current(rows, &condition.key)?;
    let (name, holds, wanted) = match test {
        Test::Exists(exists) => ("exists", is.is_some() == *exists, exists.to_string()),
        Test::ModRev(rev) => ("mod_rev", is.as_ref().map_or(0, |is| is.mod_rev) == *rev, rev.to_string()),
        Test::Version(version) => ("version", is.as_ref().map_or(0, |is| is.version) == *version, version.to_string()),
        Test::Value(value) => {
            let holds = is.as_ref().is_some_and(|is| is.blob.is_none() && is.value == *value);
            ("value", holds, format!("{} other bytes", value.len()))
        }
    };
    if holds {
        return Ok(());
    }
    let field = format!("{at}{name}");
    Err(precondition(&field, format!("{}; {field} is {wanted}", stands(&condition.key, is.as_ref()))))
}

/// 0: any, or none.
fn check_mod_rev(key: &str, is: Option<&KvEntry>, wanted: u64, at: &str) -> Outcome<()> {
    if wanted == 0 || is.is_some_and(|is| is.mod_rev == wanted) || planted(Bug::ConditionIgnored) {
        return Ok(());
    }
    let field = format!("{at}if_mod_rev");
    Err(precondition(&field, format!("{}; {field} is {wanted}", stands(key, is))))
}

/// What is there, for whoever expected something else.
fn stands(key: &str, is: Option<&KvEntry>) -> String {
    match is {
        Some(is) => format!("key {key:?} is at mod_rev {}, version {}", is.mod_rev, is.version),
        None => format!("key {key:?} does not exist"),
    }
}

/// The new value, and how many bytes were taken apart for it.
fn merged(req: &KvPutRequest, before: Option<&KvEntry>, at: &str) -> Outcome<(Bytes, u64)> {
    let how = checked::merge(req, at)?;
    if how != KvMerge::Replace && before.is_some_and(|before| before.blob.is_some()) {
        let field = format!("{at}merge");
        return Err(precondition(&field, format!("{field} must be REPLACE: key {:?} holds a blob", req.key)));
    }
    let mut taken_apart = 0;
    let merged = merge::merged(how, before.map(|before| &*before.value), &req.value, &mut taken_apart)
        .map_err(|refused| cannot_merge(refused, req, at))?;
    if merged.len() > MAX_VALUE_BYTES {
        let (field, size) = (format!("{at}value"), merged.len());
        let message = format!("key {:?} would hold {size} bytes with it; at most {MAX_VALUE_BYTES} go", req.key);
        return Err(exhausted(&field, message));
    }
    Ok((merged, taken_apart))
}

fn cannot_merge(refused: Refused, req: &KvPutRequest, at: &str) -> Error {
    let (value, merge, key) = (format!("{at}value"), format!("{at}merge"), &req.key);
    match refused {
        Refused::Old(needed) => {
            precondition(&merge, format!("{merge} needs {needed}; key {key:?} holds something else"))
        }
        Refused::New(needed) => invalid(&value, format!("{value} must be {needed} for this merge")),
        Refused::TooDeep => invalid(&value, format!("{value} must have at most {MAX_DEPTH} objects in one another")),
        Refused::TooMuch => {
            let message = format!(
                "{merge} would take more than {MAX_TAKEN_APART} bytes apart, each once for every object that it is in: \
                 what key {key:?} holds is too much for {value}, which goes so deep"
            );
            exhausted(&merge, message)
        }
        Refused::Overflow => {
            precondition(&merge, format!("the sum of what key {key:?} holds and {value} does not fit 64 bits"))
        }
    }
}

/// A removal counts as a version, so the count goes on from it.
fn next_version(rows: &dyn Rows, key: &str, before: Option<&KvEntry>) -> Result<u64, Fatal> {
    let newest = match before {
        Some(before) => before.version,
        None => newest_kept(rows, key)?,
    };
    Ok(newest + 1)
}

/// What some writes add and take away together: a document may take the place that another leaves.
#[derive(Debug, Default)]
pub(crate) struct Growth {
    keys: Shift,
    bytes: Shift,
    /// By session: how many keys go with it, and how heavy they are.
    leases: BTreeMap<String, (Shift, Shift)>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Shift {
    more: u64,
    less: u64,
}

impl Shift {
    /// How much there would be, if that is more than there is and more than there may be.
    fn beyond(self, now: u64, most: u64) -> Option<u64> {
        let then = now.saturating_add(self.more).saturating_sub(self.less);
        (self.more > self.less && then > most).then_some(then)
    }
}

impl Growth {
    /// What one write adds.
    pub(crate) fn of(planned: &Planned) -> Self {
        let mut growth = Growth::default();
        growth.add(planned);
        growth
    }

    /// One more write.
    pub(crate) fn add(&mut self, planned: &Planned) {
        if let Some(before) = &planned.before {
            self.keys.less += 1;
            self.bytes.less += weight(before);
            if !before.session_id.is_empty() {
                let (keys, bytes) = self.leases.entry(before.session_id.clone()).or_default();
                keys.less += 1;
                bytes.less += burden(before);
            }
        }
        if let Some(after) = planned.document() {
            self.keys.more += 1;
            self.bytes.more += weight(after);
            if !after.session_id.is_empty() {
                let (keys, bytes) = self.leases.entry(after.session_id.clone()).or_default();
                keys.more += 1;
                bytes.more += burden(after);
            }
        }
    }

    /// Refuses what there is no room for. `whole` is the field at fault; empty: each limit has its own.
    pub(crate) fn check(&self, rooms: &Rooms, whole: &str) -> Outcome<()> {
        let kv = &rooms.kv;
        let field = |own: &'static str| if whole.is_empty() { own.to_owned() } else { whole.to_owned() };
        let limits = [
            ("key", self.keys, kv.totals.keys, rooms.quotas.max_kv_keys, "keys"),
            ("value", self.bytes, kv.totals.bytes, rooms.quotas.max_kv_bytes, "bytes of documents"),
        ];
        for (own, shift, now, most, what) in limits {
            if most > 0
                && let Some(then) = shift.beyond(now, most)
            {
                let message = format!("the namespace may hold {most} {what}, and this would make it {then}");
                return Err(exhausted(&field(own), message));
            }
        }
        for (session_id, (keys, bytes)) in &self.leases {
            let (now_keys, now_bytes) =
                kv.leases.get(session_id).map_or((0, 0), |leased| (leased.keys.len() as u64, leased.burden));
            let limits =
                [(keys, now_keys, MAX_LEASES, "keys"), (bytes, now_bytes, MAX_LEASED_BYTES, "bytes of documents")];
            for (shift, now, most, what) in limits {
                if shift.beyond(now, most).is_some() {
                    let message = format!("at most {most} {what} go with session {session_id:?}; delete some first");
                    return Err(exhausted(&field("session_id"), message));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::KeyValue;

    use super::super::Leased;
    use super::*;
    use crate::storage::rows::MemoryRows;

    fn entry(key: &str, bytes: usize) -> KvEntry {
        KvEntry { key: key.to_owned(), value: Bytes::from(vec![b'x'; bytes]), version: 1, ..KvEntry::default() }
    }

    fn put(before: Option<KvEntry>, after: KvEntry) -> Planned {
        Planned { before, after, taken_apart: 0 }
    }

    fn full_rooms() -> Rooms {
        let mut rooms = Rooms::default();
        rooms.quotas.max_kv_keys = 2;
        rooms.quotas.max_kv_bytes = 100;
        rooms.kv.totals.keys = 2;
        rooms.kv.totals.bytes = 100;
        rooms
    }

    fn field_at_fault(outcome: Outcome<()>) -> String {
        match outcome {
            Ok(()) => "none".to_owned(),
            Err(Error::Rejected(rejection)) => rejection.field,
            Err(fatal) => panic!("{fatal}"),
        }
    }

    #[test]
    fn quotas_refuse_what_grows_and_nothing_else() {
        let rooms = full_rooms();
        let check = |planned: Planned| field_at_fault(Growth::of(&planned).check(&rooms, ""));
        assert_eq!(check(put(None, entry("c", 1))), "key");
        assert_eq!(check(put(Some(entry("a", 10)), entry("a", 11))), "value");
        assert_eq!(check(put(Some(entry("a", 10)), entry("a", 10))), "none");
        let ctx = Ctx { now_ms: 1, rev: 1, entropy: 1 };
        assert_eq!(check(Planned::removal(entry("a", 10), &ctx, "")), "none");
    }

    #[test]
    fn what_goes_makes_room_for_what_comes() {
        let rooms = full_rooms();
        let ctx = Ctx { now_ms: 1, rev: 1, entropy: 1 };
        let mut growth = Growth::of(&put(None, entry("c", 10)));
        assert_eq!(field_at_fault(growth.check(&rooms, "ops")), "ops");
        growth.add(&Planned::removal(entry("a", 10), &ctx, ""));
        assert_eq!(field_at_fault(growth.check(&rooms, "ops")), "none");
    }

    #[test]
    fn so_much_goes_with_a_session() {
        let mut rooms = Rooms::default();
        let keys = (0..MAX_LEASES).map(|n| n.to_string()).collect();
        rooms.kv.leases.insert("many".to_owned(), Leased { keys, burden: MAX_LEASES });
        let keys = ["7".to_owned()].into();
        rooms.kv.leases.insert("heavy".to_owned(), Leased { keys, burden: MAX_LEASED_BYTES });
        let leased =
            |session: &str, key: &str, bytes: usize| KvEntry { session_id: session.to_owned(), ..entry(key, bytes) };
        let check = |planned: Planned| field_at_fault(Growth::of(&planned).check(&rooms, ""));
        assert_eq!(check(put(None, leased("many", "new", 1))), "session_id");
        assert_eq!(check(put(Some(entry("new", 1)), leased("many", "new", 1))), "session_id");
        assert_eq!(check(put(Some(leased("many", "7", 1)), leased("many", "7", 2))), "none");
        assert_eq!(check(put(Some(leased("many", "7", 1)), entry("7", 1))), "none");
        assert_eq!(check(put(None, leased("heavy", "new", 1))), "session_id");
        assert_eq!(check(put(Some(leased("heavy", "7", 9)), leased("heavy", "7", 10))), "session_id");
        assert_eq!(check(put(Some(leased("heavy", "7", 9)), leased("heavy", "7", 9))), "none");
    }

    #[test]
    fn what_a_document_says_of_itself_weighs_too() {
        let labelled = |labels: usize| {
            let label = KeyValue { key: "l".to_owned(), value: "x".repeat(1_000) };
            KvEntry { session_id: "s".to_owned(), labels: vec![label; labels], ..entry("k", 1) }
        };
        assert!(burden(&labelled(32)) > 32_000);
        assert!(put(Some(labelled(32)), labelled(32)).burden() > 64_000);
        let mut rooms = Rooms::default();
        rooms.kv.leases.insert("s".to_owned(), Leased { keys: ["k".to_owned()].into(), burden: MAX_LEASED_BYTES });
        let check = |planned: Planned| field_at_fault(Growth::of(&planned).check(&rooms, ""));
        assert_eq!(check(put(Some(labelled(1)), labelled(2))), "session_id");
        assert_eq!(check(put(Some(labelled(2)), labelled(2))), "none");
        assert_eq!(check(put(Some(labelled(2)), labelled(1))), "none");
    }

    #[test]
    fn what_a_patch_takes_apart_weighs_too() {
        let put = |merge: KvMerge| {
            let req = KvPutRequest {
                key: "k".to_owned(),
                value: Bytes::from_static(br#"{"a":{"b":1}}"#),
                merge: merge as i32,
                ..KvPutRequest::default()
            };
            let ctx = Ctx { now_ms: 1, rev: 1, entropy: 1 };
            check_put(&Rooms::default(), &MemoryRows::default(), &ctx, &req, "").unwrap()
        };
        let (patched, replaced) = (put(KvMerge::JsonPatch), put(KvMerge::Replace));
        assert_eq!((&patched.after, replaced.taken_apart), (&replaced.after, 0));
        // The patch, the empty object that stands for no document, and the object within the patch.
        assert_eq!(patched.burden() - replaced.burden(), 13 + 2 + 7);
    }
}
