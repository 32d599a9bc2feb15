//! Documents, as JSON.

use quorate_client::v1::{KvEntry, KvPolicy};
use serde_json::{Value, json};

use super::{blob, bytes, pairs, time};

/// A document with its value, which may come from beside the log.
pub(crate) fn kv_entry(entry: &KvEntry, value: &[u8]) -> Value {
    let mut view = super::object(kv_facts(entry));
    view.insert("value".to_owned(), bytes(value));
    Value::Object(view)
}

/// A document without its value.
pub(crate) fn kv_facts(entry: &KvEntry) -> Value {
    json!({
        "key": entry.key,
        "blob": entry.blob.as_ref().map(blob),
        "version": entry.version,
        "create_rev": entry.create_rev,
        "mod_rev": entry.mod_rev,
        "updated_at_ms": time(entry.updated_at_ms),
        "session_id": entry.session_id,
        "expires_at_ms": time(entry.expires_at_ms),
        "content_type": entry.content_type,
        "project": entry.project_id,
        "labels": pairs(&entry.labels),
        "updated_by": entry.updated_by,
        "deleted": entry.deleted,
    })
}

/// What is kept of the keys under a prefix.
pub(crate) fn kv_policy(policy: &KvPolicy) -> Value {
    json!({ "prefix": policy.prefix, "versions": policy.versions, "max_age_ms": time(policy.max_age_ms) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stands_beside_what_is_known_of_it() {
        let entry = KvEntry { key: "a".into(), mod_rev: 7, ..KvEntry::default() };
        let view = kv_entry(&entry, b"8");
        assert_eq!((&view["key"], &view["mod_rev"], &view["value"]), (&json!("a"), &json!(7), &json!(8)));
        assert!(kv_facts(&entry).get("value").is_none());
    }
}
