//! The shape of what is asked for. Nothing here knows the state.

use quorate_proto::v1::{KeyValue, KvMerge, KvPutRequest};

use crate::error::{Outcome, invalid};
use crate::state::{blobs, check_id};

/// The longest key.
pub const MAX_KEY_BYTES: usize = 512;
/// The largest value that is not a blob.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// The longest time to live: 365 days.
pub const MAX_TTL_MS: u64 = 31_536_000_000;
/// The longest content type.
pub const MAX_CONTENT_TYPE_BYTES: usize = 128;
/// The longest project id, and the longest name of who wrote.
pub const MAX_NAME_BYTES: usize = 256;
/// The most labels.
pub const MAX_LABELS: usize = 32;
/// The longest value of a label.
pub const MAX_LABEL_VALUE_BYTES: usize = 1_024;

pub(super) fn key(field: &str, key: &str) -> Outcome<()> {
    if !(1..=MAX_KEY_BYTES).contains(&key.len()) {
        return Err(invalid(field, format!("{field} must be 1 to {MAX_KEY_BYTES} bytes; got {}", key.len())));
    }
    without_nul(field, key)
}

/// What keys begin with; empty: every key.
pub(super) fn prefix(field: &str, prefix: &str) -> Outcome<()> {
    at_most(field, prefix, MAX_KEY_BYTES)?;
    without_nul(field, prefix)
}

/// Who wrote, for people.
pub(super) fn updated_by(at: &str, name: &str) -> Outcome<()> {
    at_most(&format!("{at}updated_by"), name, MAX_NAME_BYTES)
}

pub(super) fn put(req: &KvPutRequest, at: &str) -> Outcome<()> {
    key(&format!("{at}key"), &req.key)?;
    if req.value.len() > MAX_VALUE_BYTES {
        let field = format!("{at}value");
        let message =
            format!("{field} must be at most {MAX_VALUE_BYTES} bytes, or a blob; got {} bytes", req.value.len());
        return Err(invalid(&field, message));
    }
    let merge = merge(req, at)?;
    if let Some(blob) = &req.blob {
        let field = format!("{at}blob");
        if !req.value.is_empty() {
            return Err(invalid(&field, format!("{field} cannot stand beside {at}value; leave one of them out")));
        }
        if merge != KvMerge::Replace {
            return Err(invalid(&field, format!("{field} goes only with the merge REPLACE")));
        }
        blobs::check_ref(&field, blob)?;
    }
    if req.if_absent && req.if_mod_rev > 0 {
        let field = format!("{at}if_absent");
        return Err(invalid(&field, format!("{field} cannot stand beside {at}if_mod_rev; leave one of them out")));
    }
    if req.ttl_ms > MAX_TTL_MS {
        let field = format!("{at}ttl_ms");
        return Err(invalid(&field, format!("{field} must be at most {MAX_TTL_MS}; got {}", req.ttl_ms)));
    }
    at_most(&format!("{at}content_type"), &req.content_type, MAX_CONTENT_TYPE_BYTES)?;
    at_most(&format!("{at}project_id"), &req.project_id, MAX_NAME_BYTES)?;
    updated_by(at, &req.updated_by)?;
    labels(at, &req.labels)
}

/// The merge that is asked for, named.
pub(super) fn merge(req: &KvPutRequest, at: &str) -> Outcome<KvMerge> {
    match KvMerge::try_from(req.merge) {
        Ok(KvMerge::Unspecified) => Ok(KvMerge::Replace),
        Ok(merge) => Ok(merge),
        Err(_) => {
            let field = format!("{at}merge");
            let known = "REPLACE, JSON_PATCH, ADD, SET_ADD, SET_REMOVE, JSON_APPEND or APPEND";
            Err(invalid(&field, format!("{field} must be {known}; got the number {}", req.merge)))
        }
    }
}

fn labels(at: &str, labels: &[KeyValue]) -> Outcome<()> {
    let field = format!("{at}labels");
    if labels.len() > MAX_LABELS {
        return Err(invalid(&field, format!("{field} must be at most {MAX_LABELS}; got {}", labels.len())));
    }
    for (i, label) in labels.iter().enumerate() {
        check_id(&format!("{field}[{i}].key"), &label.key)?;
        at_most(&format!("{field}[{i}].value"), &label.value, MAX_LABEL_VALUE_BYTES)?;
    }
    Ok(())
}

fn at_most(field: &str, text: &str, most: usize) -> Outcome<()> {
    if text.len() > most {
        return Err(invalid(field, format!("{field} must be at most {most} bytes; got {}", text.len())));
    }
    Ok(())
}

/// Keys are parts of rows' keys, which a NUL ends.
fn without_nul(field: &str, text: &str) -> Outcome<()> {
    if text.contains('\0') {
        return Err(invalid(field, format!("{field} must not hold a NUL")));
    }
    Ok(())
}
