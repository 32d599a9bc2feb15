//! A history of sessions, sorted by session.
//!
//! Of all that saw a session gone only the operation that ended first is kept, and of all that saw it alive only the
//! one that began last: what contradicts any of them contradicts these.
//!
//! Deliberately absent: judgement.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::record::{History, Operation, Outcome};

/// One call that moves the end of a lease.
#[derive(Debug)]
pub(super) struct Renewal<'a> {
    pub(super) op: &'a Operation,
    /// It was answered. Otherwise it may come at any time.
    pub(super) is_certain: bool,
}

/// One session.
#[derive(Debug, Default)]
pub(super) struct Lease<'a> {
    /// In nanoseconds.
    pub(super) ttl: u64,
    /// The library renews it.
    pub(super) is_kept: bool,
    pub(super) renewals: Vec<Renewal<'a>>,
    /// From its end on the library renews it no more.
    pub(super) abandoned: Option<&'a Operation>,
    /// Answered, or without an answer.
    pub(super) closes: Vec<&'a Operation>,
    pub(super) epochs: Vec<(&'a Operation, u64)>,
    /// Began last.
    pub(super) alive: Option<&'a Operation>,
    /// Ended first.
    pub(super) gone: Option<&'a Operation>,
    pub(super) gone_though_held: Option<&'a Operation>,
    /// Its document is there as long as it is itself.
    put: Option<&'a Operation>,
    /// From here on another may have its id.
    replaced: bool,
}

impl<'a> Lease<'a> {
    /// Whether it certainly was there, and was looked at.
    pub(super) fn is_judged(&self) -> bool {
        self.ttl > 0 && (self.alive.is_some() || self.gone.is_some())
    }

    /// Whether somebody may have closed it before this was seen.
    pub(super) fn may_be_closed(&self, seen: &Operation) -> bool {
        self.closes.iter().any(|close| close.began_at < seen.ended_at)
    }

    fn seen(&mut self, op: &'a Operation, alive: bool) {
        if alive && self.alive.is_none_or(|last| last.began_at < op.began_at) {
            self.alive = Some(op);
        }
        if !alive && self.gone.is_none_or(|first| op.ended_at < first.ended_at) {
            self.gone = Some(op);
        }
    }

    /// Its document says something of it from when the document certainly was there.
    fn document(&mut self, op: &'a Operation, present: bool) {
        if present || self.put.is_some_and(|put| put.is_before(op)) {
            self.seen(op, present);
        }
    }

    fn open(&mut self, op: &'a Operation) -> Result<()> {
        if let Some(res) = op.res() {
            let ttl_ms = op.arg.get("ttl_ms").and_then(Value::as_u64).context("ttl_ms is missing")?;
            self.ttl = ttl_ms.saturating_mul(1_000_000);
            self.is_kept = op.arg.get("kept").and_then(Value::as_bool).unwrap_or_default();
            self.epochs.push((op, epoch(res)?));
            self.renewals.push(Renewal { op, is_certain: true });
        }
        Ok(())
    }

    fn keepalive(&mut self, op: &'a Operation) -> Result<()> {
        if self.replaced {
            return Ok(());
        }
        match op.res() {
            Some(res) => {
                let alive = flag(res, "alive")?;
                self.seen(op, alive);
                if alive {
                    self.renewals.push(Renewal { op, is_certain: true });
                }
            }
            None => self.renewals.push(Renewal { op, is_certain: false }),
        }
        Ok(())
    }

    fn resume(&mut self, op: &'a Operation) -> Result<()> {
        let Some(res) = op.res() else {
            self.replaced = true;
            self.renewals.push(Renewal { op, is_certain: false });
            return Ok(());
        };
        let same = flag(res, "same")?;
        if self.replaced {
            return Ok(());
        }
        self.seen(op, same);
        self.epochs.push((op, epoch(res)?));
        if same {
            self.renewals.push(Renewal { op, is_certain: true });
        }
        self.replaced = !same;
        Ok(())
    }

    fn close(&mut self, op: &'a Operation) -> Result<()> {
        match op.res() {
            Some(res) if !flag(res, "alive")? => self.seen(op, false),
            _ => self.closes.push(op),
        }
        Ok(())
    }

    fn observe(&mut self, op: &'a Operation, res: &Value) -> Result<()> {
        let present = flag(res, "present")?;
        self.document(op, present);
        let held = res.get("held").and_then(Value::as_bool).unwrap_or_default();
        if held && !present && self.put.is_some_and(|put| put.is_before(op)) {
            self.gone_though_held.get_or_insert(op);
        }
        Ok(())
    }
}

/// Every session, by key.
#[derive(Debug, Default)]
pub(super) struct Book<'a> {
    pub(super) leases: BTreeMap<&'a str, Lease<'a>>,
}

impl<'a> Book<'a> {
    /// Sorts a history.
    pub(super) fn read(history: &'a History) -> Result<Self> {
        let mut book = Book::default();
        let mut lists = Vec::new();
        for op in history.operations.iter().filter(|op| op.outcome != Outcome::Fail) {
            let read = book.add(op, &mut lists);
            read.with_context(|| format!("operation {} ({}) cannot be read", op.id, op.f))?;
        }
        book.look_into(lists);
        Ok(book)
    }

    fn add(&mut self, op: &'a Operation, lists: &mut Vec<List<'a>>) -> Result<()> {
        if op.f == "list" {
            if let Some(res) = op.res() {
                lists.push(List { op, keys: keys(res)? });
            }
            return Ok(());
        }
        let lease = self.leases.entry(op.key.as_str()).or_default();
        match (op.f.as_str(), op.res()) {
            ("open", _) => lease.open(op)?,
            ("keepalive", _) => lease.keepalive(op)?,
            ("resume", _) => lease.resume(op)?,
            ("close", _) => lease.close(op)?,
            ("abandon", Some(_)) => lease.abandoned = Some(op),
            ("put_ephemeral", Some(_)) => {
                lease.put.get_or_insert(op);
                lease.seen(op, true);
            }
            ("observe", Some(res)) => lease.observe(op, res)?,
            _ => {}
        }
        Ok(())
    }

    /// A document that is in no list any more is gone. The first list without it tells as much as all.
    fn look_into(&mut self, mut lists: Vec<List<'a>>) {
        lists.sort_by_key(|list| list.op.ended_at);
        for list in &lists {
            for key in &list.keys {
                if let Some(lease) = self.leases.get_mut(key) {
                    lease.document(list.op, true);
                }
            }
        }
        for (key, lease) in &mut self.leases {
            let Some(put) = lease.put else { continue };
            let from = lists.partition_point(|list| list.op.ended_at <= put.ended_at);
            let mut later = lists.iter().skip(from).filter(|list| put.is_before(list.op));
            if let Some(without) = later.find(|list| list.keys.binary_search(key).is_err()) {
                lease.document(without.op, false);
            }
        }
    }
}

/// The sessions whose document was there, in order.
#[derive(Debug)]
struct List<'a> {
    op: &'a Operation,
    keys: Vec<&'a str>,
}

fn keys(res: &Value) -> Result<Vec<&str>> {
    let keys = res.get("keys").and_then(Value::as_array).context("keys are missing")?;
    let keys = keys.iter().map(|key| key.as_str().context("a key is not a text"));
    let mut keys = keys.collect::<Result<Vec<_>>>()?;
    keys.sort_unstable();
    Ok(keys)
}

fn flag(res: &Value, name: &str) -> Result<bool> {
    res.get(name).and_then(Value::as_bool).with_context(|| format!("{name} is missing"))
}

fn epoch(res: &Value) -> Result<u64> {
    res.get("epoch").and_then(Value::as_u64).context("the epoch is missing")
}
