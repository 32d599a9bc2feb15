//! What goes by itself: documents whose session ended or whose time is over, and versions that are too old or too many.
//!
//! Versions have no timers: there may be many millions of them. A sweep passes over them all, a bounded part a command,
//! and while it is under way it is due at once again. After a pass it rests until the first version that it saw, or
//! that was written since, is too old; at least a minute, and a millisecond for each row of that pass, so that a long
//! history never keeps a cluster busy. If nothing will ever be too old, it is not due at all: an idle cluster writes
//! nothing.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use quorate_proto::log::KvTotals;
use quorate_proto::v1::KvEntry;

use super::plan::Planned;
use super::policies::Kept;
use super::write::{forget_version, put_totals, store};
use super::{Kv, burden, current, kv_key, newest_kept, version_key, versions_key};
use crate::error::{Fatal, Outcome};
use crate::state::{Ctx, Out, Rooms};
use crate::storage::keys::{Key, Table};
use crate::storage::rows::Rows;

/// The shortest rest between two passes.
const REST_MS: u64 = 60_000;
/// How many rows one command passes over.
const ROWS_AT_ONCE: usize = 1_000;
/// How much it reads, versions and the documents of their keys, and how much removing documents may write, before it
/// leaves the rest for the next one.
const BYTES_AT_ONCE: u64 = 16 << 20;

/// Removes the documents that went with this session.
pub fn session_ended(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, session_id: &str) -> Result<(), Fatal> {
    let kv = &mut rooms.kv;
    let Some(leased) = kv.leases.get(session_id) else { return Ok(()) };
    for key in leased.keys.clone() {
        remove(kv, out, ctx, &key)?;
    }
    put_totals(kv, out);
    Ok(())
}

/// Removes documents whose time is over, at most `limit`, and sweeps if that is due. The rest stays due.
pub fn run_due(rooms: &mut Rooms, out: &mut Out<'_, '_>, ctx: &Ctx, limit: usize) -> Outcome<()> {
    let kv = &mut rooms.kv;
    let over = kv.expiries.iter().take_while(|(at_ms, _)| *at_ms <= ctx.now_ms).take(limit);
    let over: Vec<String> = over.map(|(_, key)| key.clone()).collect();
    let mut written = 0;
    for key in &over {
        if written >= BYTES_AT_ONCE {
            break;
        }
        written += remove(kv, out, ctx, key)?;
    }
    let sweeps = (1..=ctx.now_ms).contains(&kv.totals.sweep_at_ms);
    if sweeps {
        sweep(kv, out, ctx)?;
    }
    if sweeps || !over.is_empty() {
        put_totals(kv, out);
    }
    Ok(())
}

/// A version was written: the sweep must come by when it is too old. The caller writes the totals.
pub(super) fn schedule(kv: &mut Kv, ctx: &Ctx, version: &KvEntry, kept: &Kept) {
    let Some(until_ms) = kept.until_ms(earlier_since_ms(version)) else { return };
    let totals = &mut kv.totals;
    if let Some(mut pass) = Pass::under_way(totals) {
        // It may be past this place already.
        pass.earliest_ms = pass.earliest_ms.min(until_ms);
        totals.sweep_cursor = pass.encoded();
        return;
    }
    let at_ms = until_ms.max(ctx.now_ms.saturating_add(REST_MS));
    totals.sweep_at_ms = if totals.sweep_at_ms == 0 { at_ms } else { totals.sweep_at_ms.min(at_ms) };
}

/// What is kept under this prefix changed: the sweep begins anew, if there is anything to look at.
pub(super) fn sweep_soon(kv: &mut Kv, out: &mut Out<'_, '_>, ctx: &Ctx, prefix: &str) -> Result<(), Fatal> {
    let under = Key::table(Table::KvVersion).bytes(prefix.as_bytes());
    if any_row(&*out.txn, under.as_bytes(), &under.prefix_end())? {
        kv.totals.sweep_cursor = Bytes::new();
        kv.totals.sweep_at_ms = ctx.now_ms.max(1);
        put_totals(kv, out);
    }
    Ok(())
}

/// Removes a document in the name of nobody, and tells how heavy it was.
fn remove(kv: &mut Kv, out: &mut Out<'_, '_>, ctx: &Ctx, key: &str) -> Result<u64, Fatal> {
    let Some(before) = current(&*out.txn, key)? else {
        return Err(Fatal::Corrupt(format!("no document for the key {key:?}, which is to go")));
    };
    let weighs = burden(&before);
    store(kv, out, ctx, Planned::removal(before, ctx, ""))?;
    Ok(weighs)
}

/// One pass of the sweep, as the cursor keeps it between two commands: two numbers of 8 bytes, then where it goes on.
struct Pass {
    /// When the first of the versions that stay is too old; `u64::MAX`: none ever.
    earliest_ms: u64,
    /// How many rows it saw.
    seen: u64,
    /// The key of the next row.
    from: Vec<u8>,
}

impl Pass {
    /// An empty cursor: none is under way.
    fn under_way(totals: &KvTotals) -> Option<Self> {
        let (earliest_ms, rest) = totals.sweep_cursor.split_first_chunk::<8>()?;
        let (seen, from) = rest.split_first_chunk::<8>()?;
        Some(Pass {
            earliest_ms: u64::from_be_bytes(*earliest_ms),
            seen: u64::from_be_bytes(*seen),
            from: from.to_vec(),
        })
    }

    fn first() -> Self {
        Pass { earliest_ms: u64::MAX, seen: 0, from: Key::table(Table::KvVersion).as_bytes().to_vec() }
    }

    fn encoded(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(16 + self.from.len());
        bytes.put_u64(self.earliest_ms);
        bytes.put_u64(self.seen);
        bytes.put_slice(&self.from);
        bytes.freeze()
    }

    /// When the next one begins; 0: it need not.
    fn next_ms(&self, ctx: &Ctx) -> u64 {
        if self.earliest_ms == u64::MAX {
            return 0;
        }
        self.earliest_ms.max(ctx.now_ms.saturating_add(REST_MS.max(self.seen)))
    }
}

/// Since when a version has been an earlier one. A document that stood for a year and is replaced by mistake can be had
/// back for as long as any other.
fn earlier_since_ms(version: &KvEntry) -> u64 {
    version.superseded_at_ms.max(version.updated_at_ms)
}

/// A row that the sweep looks at.
struct Seen {
    key: String,
    version: u64,
    /// The version that the key is at.
    newest: u64,
    since_ms: u64,
}

/// What becomes of it.
enum Fate {
    Goes,
    /// Until then, if it is to go at all.
    Stays(Option<u64>),
}

/// One part of a pass. The caller writes the totals.
fn sweep(kv: &mut Kv, out: &mut Out<'_, '_>, ctx: &Ctx) -> Result<(), Fatal> {
    let mut pass = Pass::under_way(&kv.totals).unwrap_or_else(Pass::first);
    let (part, next) = look(&*out.txn, &pass.from)?;
    pass.seen += part.len() as u64;
    // Of each key the oldest first: its removal goes only when it is the last of its rows.
    for row in part.iter().rev() {
        match fate(kv, &*out.txn, ctx, row)? {
            Fate::Goes => forget_version(out, &row.key, row.version)?,
            Fate::Stays(Some(until_ms)) => pass.earliest_ms = pass.earliest_ms.min(until_ms),
            Fate::Stays(None) => {}
        }
    }
    match next {
        Some(from) => {
            pass.from = from;
            kv.totals.sweep_cursor = pass.encoded();
            kv.totals.sweep_at_ms = ctx.now_ms.max(1);
        }
        None => {
            kv.totals.sweep_cursor = Bytes::new();
            kv.totals.sweep_at_ms = pass.next_ms(ctx);
        }
    }
    Ok(())
}

/// The next rows of a pass, and the key of the one after them.
fn look(rows: &dyn Rows, from: &[u8]) -> Result<(Vec<Seen>, Option<Vec<u8>>), Fatal> {
    let mut part: Vec<Seen> = Vec::new();
    let (mut read, mut next) = (0, None);
    rows.scan(from, &Key::table(Table::KvVersion).prefix_end(), &mut |row, value| {
        if part.len() >= ROWS_AT_ONCE || read >= BYTES_AT_ONCE {
            next = Some(row.to_vec());
            return Ok(false);
        }
        read += value.len() as u64;
        let entry = KvEntry::decode(value)?;
        let newest = match part.last() {
            Some(last) if last.key == entry.key => last.newest,
            _ => {
                let (newest, bytes) = newest_version(rows, &entry.key)?;
                read += bytes;
                newest
            }
        };
        let since_ms = earlier_since_ms(&entry);
        part.push(Seen { key: entry.key, version: entry.version, newest, since_ms });
        Ok(true)
    })?;
    Ok((part, next))
}

fn fate(kv: &Kv, rows: &dyn Rows, ctx: &Ctx, row: &Seen) -> Result<Fate, Fatal> {
    let kept = kv.kept(&row.key);
    if row.version.saturating_add(u64::from(kept.versions)) < row.newest {
        return Ok(Fate::Goes);
    }
    match kept.until_ms(row.since_ms) {
        Some(until_ms) if until_ms <= ctx.now_ms => {
            // The removal of what is gone: without it, the count of what is older would go on from there.
            let last = row.version < row.newest || !has_older(rows, row)?;
            Ok(if last { Fate::Goes } else { Fate::Stays(Some(ctx.now_ms)) })
        }
        until_ms => Ok(Fate::Stays(until_ms)),
    }
}

/// The document's version, or that of its removal; and how many bytes the document has, which had to be read.
fn newest_version(rows: &dyn Rows, key: &str) -> Result<(u64, u64), Fatal> {
    match rows.get_bytes(kv_key(key).as_bytes())? {
        Some(row) => {
            let bytes = row.len() as u64;
            Ok((KvEntry::decode(row)?.version, bytes))
        }
        None => Ok((newest_kept(rows, key)?, 0)),
    }
}

fn has_older(rows: &dyn Rows, row: &Seen) -> Result<bool, Fatal> {
    let after = version_key(&row.key, row.version).bytes(&[0]);
    any_row(rows, after.as_bytes(), &versions_key(&row.key).prefix_end())
}

fn any_row(rows: &dyn Rows, from: &[u8], to: &[u8]) -> Result<bool, Fatal> {
    let mut any = false;
    rows.scan(from, to, &mut |_, _| {
        any = true;
        Ok(false)
    })?;
    Ok(any)
}

#[cfg(test)]
mod tests {
    use quorate_proto::v1::{KvPolicy, KvPutRequest, SetKvPolicyRequest};

    use super::super::{DEFAULT_MAX_AGE_MS, put, set_policy};
    use super::*;
    use crate::storage::rows::MemoryRows;
    use crate::storage::txn::Txn;

    const KEYS: usize = ROWS_AT_ONCE + 200;

    #[derive(Default)]
    struct State {
        rooms: Rooms,
        rows: MemoryRows,
        rev: u64,
    }

    impl State {
        /// Every key written twice: one earlier version each.
        fn with_versions(now_ms: u64) -> Self {
            let mut state = State::default();
            for _ in 0..2 {
                (0..KEYS).for_each(|n| state.put(now_ms, n));
            }
            assert_eq!(state.versions(), KEYS);
            state
        }

        fn run<T>(&mut self, now_ms: u64, f: impl FnOnce(&mut Rooms, &mut Out<'_, '_>, &Ctx) -> Outcome<T>) {
            self.rev += 1;
            let ctx = Ctx { now_ms, rev: self.rev, entropy: 0 };
            let mut txn = Txn::new(&self.rows, 0);
            let outcome = f(&mut self.rooms, &mut Out { txn: &mut txn, effects: &mut Vec::new() }, &ctx);
            assert!(outcome.is_ok(), "{:?}", outcome.err());
            for (key, value) in txn.into_writes().rows {
                match value {
                    Some(value) => self.rows.0.insert(key, value),
                    None => self.rows.0.remove(&key),
                };
            }
            assert_eq!(Kv::rebuild(&self.rows).unwrap(), self.rooms.kv, "the indexes differ from a rebuild");
        }

        fn put(&mut self, now_ms: u64, n: usize) {
            self.put_value(now_ms, n, "v".into());
        }

        fn put_value(&mut self, now_ms: u64, n: usize, value: Bytes) {
            let req = KvPutRequest { key: format!("k{n:05}"), value, ..KvPutRequest::default() };
            self.run(now_ms, |rooms, out, ctx| put(rooms, out, ctx, req));
        }

        /// From now on nothing is kept but documents.
        fn keep_no_versions(&mut self, now_ms: u64) {
            let policy = Some(KvPolicy { prefix: "k".to_owned(), versions: 0, max_age_ms: 0 });
            let req = SetKvPolicyRequest { policy, request: None };
            self.run(now_ms, |rooms, out, ctx| set_policy(rooms, out, ctx, req));
        }

        fn tick(&mut self, now_ms: u64) {
            self.run(now_ms, |rooms, out, ctx| run_due(rooms, out, ctx, 1_000));
        }

        fn versions(&self) -> usize {
            let table = Key::table(Table::KvVersion);
            self.rows.0.keys().filter(|key| key.starts_with(table.as_bytes())).count()
        }
    }

    #[test]
    fn a_long_pass_takes_several_commands() {
        let mut state = State::with_versions(1_000);
        state.keep_no_versions(1_000);
        assert_eq!(state.rooms.kv.next_due_ms(), Some(1_000));
        state.tick(1_000);
        assert_eq!((state.versions(), state.rooms.kv.next_due_ms()), (KEYS - ROWS_AT_ONCE, Some(1_000)));
        state.tick(1_000);
        assert_eq!((state.versions(), state.rooms.kv.next_due_ms()), (0, None));
    }

    #[test]
    fn documents_that_a_pass_reads_count() {
        let mut state = State::default();
        let heavy = Bytes::from(vec![b'x'; 1 << 20]);
        for n in 0..20 {
            state.put(1_000, n);
            state.put_value(1_000, n, heavy.clone());
        }
        state.keep_no_versions(1_000);
        assert_eq!(state.versions(), 20);
        state.tick(1_000);
        assert_eq!((state.versions(), state.rooms.kv.next_due_ms()), (4, Some(1_000)), "16 MiB of documents a part");
        state.tick(1_000);
        assert_eq!((state.versions(), state.rooms.kv.next_due_ms()), (0, None));
    }

    #[test]
    fn what_is_written_behind_a_pass_is_for_the_next_one() {
        let mut state = State::with_versions(1_000);
        let old_ms = 1_000 + DEFAULT_MAX_AGE_MS;
        assert_eq!(state.rooms.kv.next_due_ms(), Some(old_ms));
        state.tick(old_ms);
        state.put(old_ms, 0);
        assert_eq!(state.versions(), KEYS - ROWS_AT_ONCE + 1);
        state.tick(old_ms);
        // What the put replaced was written long ago, but has been an earlier version only since then.
        let next_ms = old_ms + DEFAULT_MAX_AGE_MS;
        assert_eq!((state.versions(), state.rooms.kv.next_due_ms()), (1, Some(next_ms)));
        state.tick(next_ms);
        assert_eq!((state.versions(), state.rooms.kv.next_due_ms()), (0, None));
    }
}
