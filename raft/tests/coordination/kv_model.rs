//! What the documents should be: of each key the list of all its versions, and which of them are kept.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_proto::v1::{
    KvCondition, KvDeleteRequest, KvEntry, KvMerge, KvPolicy, KvPutRequest, KvRollbackRequest, Quotas, RejectionCode,
    kv_condition,
};
use quorate_raft::state::kv;
use serde_json::{Map, Value};

use super::view::View;
use super::{At, is_past};

/// One key since its count began: version 1 is the first of them, and a removal is one too.
#[derive(Debug, Clone, Default)]
struct Versions {
    all: Vec<KvEntry>,
    /// The numbers of those that are kept besides the document.
    kept: BTreeSet<u64>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct KvModel {
    keys: BTreeMap<String, Versions>,
    policies: BTreeMap<String, KvPolicy>,
}

impl Versions {
    fn newest(&self) -> u64 {
        self.all.len() as u64
    }

    fn document(&self) -> Option<&KvEntry> {
        self.all.last().filter(|entry| !entry.deleted)
    }

    fn version(&self, number: u64) -> &KvEntry {
        &self.all[number as usize - 1]
    }
}

impl KvModel {
    pub(crate) fn document(&self, key: &str) -> Option<&KvEntry> {
        self.keys.get(key).and_then(Versions::document)
    }

    /// What a put would make of the key, or why it is refused.
    pub(crate) fn put(&self, at: At, req: &KvPutRequest, view: &View) -> Result<KvEntry, RejectionCode> {
        use RejectionCode::{FailedPrecondition, InvalidArgument, NotFound};
        let before = self.document(&req.key);
        if req.if_absent && req.if_mod_rev > 0 {
            return Err(InvalidArgument);
        }
        self.is_at(&req.key, req.if_mod_rev)?;
        if req.if_absent && before.is_some() {
            return Err(FailedPrecondition);
        }
        if !req.session_id.is_empty() && !view.sessions.contains_key(&req.session_id) {
            return Err(NotFound);
        }
        let replaces = matches!(req.merge(), KvMerge::Replace | KvMerge::Unspecified);
        if !replaces && before.is_some_and(|before| before.blob.is_some()) {
            return Err(FailedPrecondition);
        }
        let value = merged(req.merge(), before.map(|before| &before.value[..]), &req.value)?;
        let before = before.cloned().unwrap_or_default();
        Ok(KvEntry {
            value,
            blob: req.blob.clone(),
            session_id: req.session_id.clone(),
            expires_at_ms: if req.ttl_ms > 0 { at.now_ms + req.ttl_ms } else { 0 },
            content_type: if req.content_type.is_empty() { before.content_type } else { req.content_type.clone() },
            ..self.next(at, &req.key)
        })
    }

    /// What a removal would make of it; `None`: there is nothing to remove.
    pub(crate) fn delete(&self, at: At, req: &KvDeleteRequest) -> Result<Option<KvEntry>, RejectionCode> {
        self.is_at(&req.key, req.if_mod_rev)?;
        Ok(self.document(&req.key).map(|_| self.removal(at, &req.key)))
    }

    pub(crate) fn rollback(&self, at: At, req: &KvRollbackRequest) -> Result<KvEntry, RejectionCode> {
        if req.version == 0 {
            return Err(RejectionCode::InvalidArgument);
        }
        self.is_at(&req.key, req.if_mod_rev)?;
        let versions = self.keys.get(&req.key).ok_or(RejectionCode::NotFound)?;
        let current = versions.document().filter(|document| document.version == req.version);
        let kept = versions.kept.contains(&req.version).then(|| versions.version(req.version));
        let earlier = current.or(kept).filter(|entry| !entry.deleted).ok_or(RejectionCode::NotFound)?;
        Ok(KvEntry {
            value: earlier.value.clone(),
            blob: earlier.blob.clone(),
            content_type: earlier.content_type.clone(),
            ..self.next(at, &req.key)
        })
    }

    pub(crate) fn holds(&self, condition: &KvCondition) -> bool {
        use kv_condition::Test::{Exists, ModRev, Value, Version};
        let is = self.document(&condition.key);
        match condition.test.as_ref().expect("a test") {
            Exists(exists) => is.is_some() == *exists,
            ModRev(mod_rev) => is.map_or(0, |is| is.mod_rev) == *mod_rev,
            Version(version) => is.map_or(0, |is| is.version) == *version,
            Value(value) => is.is_some_and(|is| is.blob.is_none() && is.value == *value),
        }
    }

    /// Whether there is room for all of these writes together.
    pub(crate) fn fits(&self, quotas: &Quotas, writes: &[KvEntry]) -> Result<(), RejectionCode> {
        let replaced: Vec<&KvEntry> = writes.iter().filter_map(|after| self.document(&after.key)).collect();
        let written: Vec<&KvEntry> = writes.iter().filter(|after| !after.deleted).collect();
        let (keys, bytes) = self.totals();
        let grows_beyond =
            |now: u64, less: u64, more: u64, most: u64| most > 0 && more > less && now + more - less > most;
        let weigh = |entries: &[&KvEntry]| -> u64 { entries.iter().map(|entry| weight(entry)).sum() };
        if grows_beyond(keys, replaced.len() as u64, written.len() as u64, quotas.max_kv_keys)
            || grows_beyond(bytes, weigh(&replaced), weigh(&written), quotas.max_kv_bytes)
        {
            return Err(RejectionCode::ResourceExhausted);
        }
        Ok(())
    }

    /// The newest version of its key.
    pub(crate) fn write(&mut self, at: At, after: KvEntry) {
        let (most, _) = self.policy(&after.key);
        let versions = self.keys.entry(after.key.clone()).or_default();
        let (before, newest) = (versions.newest(), versions.newest() + 1);
        assert_eq!(after.version, newest, "the count goes on: {after:?}");
        if versions.document().is_some() && most > 0 {
            versions.kept.insert(before);
            versions.all.last_mut().expect("a document").superseded_at_ms = at.now_ms;
        }
        if after.deleted {
            versions.kept.insert(newest);
        }
        versions.all.push(after);
        // One too many goes with the next write; more than one goes by the sweep.
        versions.kept.retain(|number| number + most + 1 != newest);
    }

    pub(crate) fn set_policy(&mut self, policy: &KvPolicy) {
        self.policies.insert(policy.prefix.clone(), policy.clone());
    }

    pub(crate) fn delete_policy(&mut self, prefix: &str) {
        self.policies.remove(prefix);
    }

    pub(crate) fn session_ended(&mut self, at: At, session_id: &str) {
        self.remove_those(at, |document| document.session_id == session_id);
    }

    pub(crate) fn tick(&mut self, at: At, sweeps: bool) {
        self.remove_those(at, |document| is_past(document.expires_at_ms, at.now_ms));
        if sweeps {
            self.sweep(at);
        }
    }

    /// How many documents there are, and how heavy they are.
    pub(crate) fn totals(&self) -> (u64, u64) {
        let documents: Vec<&KvEntry> = self.keys.values().filter_map(Versions::document).collect();
        (documents.len() as u64, documents.into_iter().map(weight).sum())
    }

    /// The rows are what the model has.
    pub(crate) fn check(&self, view: &View) {
        let documents =
            self.keys.iter().filter_map(|(key, versions)| Some((key.clone(), versions.document()?.clone())));
        assert_eq!(view.documents, documents.collect::<BTreeMap<String, KvEntry>>(), "documents");
        let kept = self.keys.iter().flat_map(|(key, versions)| {
            versions.kept.iter().map(move |number| ((key.clone(), *number), versions.version(*number).clone()))
        });
        assert_eq!(view.versions, kept.collect::<BTreeMap<(String, u64), KvEntry>>(), "earlier versions");
    }

    /// How many versions are kept of a key, and how long.
    pub(crate) fn policy(&self, key: &str) -> (u64, Option<u64>) {
        let found = self.policies.values().filter(|policy| key.starts_with(&policy.prefix));
        match found.max_by_key(|policy| policy.prefix.len()) {
            Some(policy) => (policy.versions.into(), Some(policy.max_age_ms).filter(|age_ms| *age_ms > 0)),
            None => (kv::DEFAULT_VERSIONS.into(), Some(kv::DEFAULT_MAX_AGE_MS)),
        }
    }

    fn is_at(&self, key: &str, mod_rev: u64) -> Result<(), RejectionCode> {
        let holds = mod_rev == 0 || self.document(key).is_some_and(|document| document.mod_rev == mod_rev);
        if holds { Ok(()) } else { Err(RejectionCode::FailedPrecondition) }
    }

    /// What every next version of a key says.
    fn next(&self, at: At, key: &str) -> KvEntry {
        KvEntry {
            key: key.to_owned(),
            version: self.keys.get(key).map_or(0, Versions::newest) + 1,
            create_rev: self.document(key).map_or(at.rev, |document| document.create_rev),
            mod_rev: at.rev,
            updated_at_ms: at.now_ms,
            ..KvEntry::default()
        }
    }

    fn removal(&self, at: At, key: &str) -> KvEntry {
        KvEntry { deleted: true, ..self.next(at, key) }
    }

    fn remove_those(&mut self, at: At, wanted: impl Fn(&KvEntry) -> bool) {
        let documents = self.keys.values().filter_map(Versions::document);
        let keys: Vec<String> =
            documents.filter(|document| wanted(document)).map(|document| document.key.clone()).collect();
        for key in keys {
            self.write(at, self.removal(at, &key));
        }
    }

    /// What is too much or too old goes; a removal is the last of its key to go.
    fn sweep(&mut self, at: At) {
        let policies: BTreeMap<String, (u64, Option<u64>)> =
            self.keys.keys().map(|key| (key.clone(), self.policy(key))).collect();
        for (key, versions) in &mut self.keys {
            let (most, age_ms) = policies[key];
            for number in versions.kept.clone() {
                let until_ms = age_ms.map(|age_ms| earlier_since_ms(versions.version(number)) + age_ms);
                let is_last = number == versions.newest() && versions.kept.first() != Some(&number);
                let too_many = number + most < versions.newest();
                if too_many || (until_ms.is_some_and(|until_ms| until_ms <= at.now_ms) && !is_last) {
                    versions.kept.remove(&number);
                }
            }
        }
        self.keys.retain(|_, versions| versions.document().is_some() || !versions.kept.is_empty());
    }
}

/// Since when a version has been an earlier one; a removal, since it was made.
pub(crate) fn earlier_since_ms(entry: &KvEntry) -> u64 {
    if entry.deleted { entry.updated_at_ms } else { entry.superseded_at_ms }
}

/// What a document weighs in the totals.
pub(crate) fn weight(entry: &KvEntry) -> u64 {
    (entry.key.len() + entry.value.len()) as u64 + entry.blob.as_ref().map_or(0, |blob| blob.size_bytes)
}

/// How a new value meets the old one, by way of parsed JSON. The old one is looked at first.
fn merged(how: KvMerge, old: Option<&[u8]>, new: &Bytes) -> Result<Bytes, RejectionCode> {
    use RejectionCode::{FailedPrecondition, InvalidArgument};
    let json = |text: &[u8]| serde_json::from_slice::<Value>(text).ok();
    let array = |text: &[u8]| serde_json::from_slice::<Vec<Value>>(text).ok();
    let set = |text: &[u8]| serde_json::from_slice::<BTreeSet<String>>(text).ok();
    let integer = |text: &[u8]| std::str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok());
    Ok(match how {
        KvMerge::Unspecified | KvMerge::Replace => new.clone(),
        KvMerge::Append => Bytes::from([old.unwrap_or_default(), &new[..]].concat()),
        KvMerge::Add => {
            let old = integer(old.unwrap_or(b"0")).ok_or(FailedPrecondition)?;
            let sum = old.checked_add(integer(new).ok_or(InvalidArgument)?);
            Bytes::from(sum.ok_or(FailedPrecondition)?.to_string())
        }
        KvMerge::SetAdd | KvMerge::SetRemove => {
            let old = set(old.unwrap_or(b"[]")).ok_or(FailedPrecondition)?;
            let new = set(new).ok_or(InvalidArgument)?;
            let members: BTreeSet<&String> =
                if how == KvMerge::SetAdd { old.union(&new).collect() } else { old.difference(&new).collect() };
            text(&members)
        }
        KvMerge::JsonAppend => {
            let old = array(old.unwrap_or(b"[]")).ok_or(FailedPrecondition)?;
            let new = array(new).ok_or(InvalidArgument)?;
            text(&[old, new].concat())
        }
        KvMerge::JsonPatch => {
            let old = json(old.unwrap_or(b"{}")).ok_or(FailedPrecondition)?;
            text(&patched(old, json(new).ok_or(InvalidArgument)?))
        }
    })
}

fn text(value: &impl serde::Serialize) -> Bytes {
    Bytes::from(serde_json::to_vec(value).expect("a value that can be written"))
}

/// RFC 7396, as its authors write it down.
fn patched(target: Value, patch: Value) -> Value {
    let changes = match patch {
        Value::Object(changes) => changes,
        other => return other,
    };
    let mut members = match target {
        Value::Object(members) => members,
        _ => Map::new(),
    };
    for (name, change) in changes {
        let old = members.remove(&name).unwrap_or(Value::Null);
        if !change.is_null() {
            members.insert(name, patched(old, change));
        }
    }
    Value::Object(members)
}
