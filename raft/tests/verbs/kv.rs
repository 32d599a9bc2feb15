//! The verbs of scripts about documents and transactions.
//!
//! ```text
//! kv_put KEY value=v | bytes=n | blob=A:size  merge=add rev=n absent session=s ttl=ms type=t project=p by=b
//!        labels=k:v,..
//!        key_bytes=n or nul instead of KEY: a key of that length, a key with a NUL
//! kv_delete KEY rev=n by=b        kv_rollback KEY version=n rev=n by=b
//! kv_policy prefix=p versions=n age=ms | nothing        kv_policy_delete prefix=p
//! transact if=KEY:absent,KEY:exists,KEY:rev:n,KEY:version:n,KEY:value:v many=n inner
//!          ops=put:KEY:v,add:KEY:n,del:KEY,ack:QUEUE:seq:token,pub:SUBJECT:payload:QUEUE,must:SUBJECT:payload,
//!          flood:SUBJECT:n     as many messages as one publish takes, or fewer
//! kv_get KEY version=n        kv_list prefix=p from=k to=k limit=n project=p since=ms
//! kv_history KEY limit=n before=version keys        kv_policies    kv_totals    kv_chunks
//! ```
//!
//! A blob is named by one letter, which its hashes are made of. `many=n` adds puts of the keys k0, k1, … `inner` gives
//! the first op a request of its own.

use bytes::Bytes;
use quorate_proto::log::{answer, command};
use quorate_proto::v1::{
    AckItem, AckKind, BlobRef, BusMessage, DeleteKvPolicyRequest, KeyValue, KvCondition, KvDeleteRequest, KvEntry,
    KvHistoryRequest, KvListRequest, KvMerge, KvPolicy, KvPutRequest, KvRollbackRequest, PublishRequest, RequestId,
    SetKvPolicyRequest, TransactOp, TransactRequest, TransactResult, kv_condition, transact_op, transact_result,
};
use quorate_raft::apply::Machine;
use quorate_raft::storage::keys::{Key, Table};
use quorate_raft::storage::rows::Rows;

use super::Line;

/// The command that a line stands for.
pub(crate) fn body(line: &Line<'_>) -> Option<command::Body> {
    use command::Body as B;
    Some(match line.verb {
        "kv_put" => B::KvPut(put(line)),
        "kv_delete" => B::KvDelete(KvDeleteRequest {
            key: line.id(),
            if_mod_rev: line.number("rev", 0),
            updated_by: line.text("by"),
            request: None,
        }),
        "kv_rollback" => B::KvRollback(KvRollbackRequest {
            key: line.id(),
            version: line.number("version", 0),
            if_mod_rev: line.number("rev", 0),
            updated_by: line.text("by"),
            request: None,
        }),
        "kv_policy" => {
            let policy = KvPolicy {
                prefix: line.text("prefix"),
                versions: line.small("versions", 0),
                max_age_ms: line.number("age", 0),
            };
            let policy = Some(policy).filter(|_| !line.plain.contains(&"nothing"));
            B::SetKvPolicy(SetKvPolicyRequest { policy, request: None })
        }
        "kv_policy_delete" => B::DeleteKvPolicy(DeleteKvPolicyRequest { prefix: line.text("prefix"), request: None }),
        "transact" => B::Transact(transact(line)),
        _ => return None,
    })
}

fn put(line: &Line<'_>) -> KvPutRequest {
    let value = match line.number("bytes", 0) {
        0 => Bytes::from(line.text("value")),
        size => Bytes::from(vec![b'x'; usize::try_from(size).unwrap()]),
    };
    let key = match line.number("key_bytes", 0) {
        0 if line.plain.contains(&"nul") => "a\0b".to_owned(),
        0 => line.id(),
        length => "k".repeat(usize::try_from(length).unwrap()),
    };
    let labels = line.list("labels").into_iter().map(|label| {
        let (key, value) = label.split_once(':').unwrap();
        KeyValue { key: key.to_owned(), value: value.to_owned() }
    });
    KvPutRequest {
        key,
        value,
        blob: line.named.get("blob").map(|blob| blob_ref(blob)),
        merge: merge(&line.text("merge")),
        if_mod_rev: line.number("rev", 0),
        if_absent: line.plain.contains(&"absent"),
        session_id: line.text("session"),
        ttl_ms: line.number("ttl", 0),
        content_type: line.text("type"),
        project_id: line.text("project"),
        labels: labels.collect(),
        updated_by: line.text("by"),
        request: None,
    }
}

/// A name, or a number that may stand for nothing.
fn merge(text: &str) -> i32 {
    match KvMerge::from_str_name(&format!("KV_MERGE_{}", text.to_uppercase())) {
        Some(merge) => merge as i32,
        None if text.is_empty() => 0,
        None => text.parse().unwrap(),
    }
}

fn blob_ref(text: &str) -> BlobRef {
    let (letter, size) = text.split_once(':').unwrap();
    let (letter, size_bytes) = (letter.as_bytes()[0], size.parse::<u64>().unwrap());
    let chunks = size_bytes.div_ceil(1 << 20);
    let chunks = (0..chunks).map(|n| {
        let mut hash = vec![letter; 32];
        hash[31] = u8::try_from(n).unwrap();
        Bytes::from(hash)
    });
    BlobRef { hash: vec![letter; 32].into(), size_bytes, chunks: chunks.collect() }
}

fn transact(line: &Line<'_>) -> TransactRequest {
    let conditions = line.list("if").iter().map(|text| condition(text)).collect();
    let mut ops: Vec<TransactOp> = line.list("ops").iter().map(|text| op(text)).collect();
    ops.extend((0..line.number("many", 0)).map(|n| op(&format!("put:k{n}:v"))));
    if line.plain.contains(&"inner")
        && let Some(TransactOp { op: Some(transact_op::Op::Put(put)) }) = ops.first_mut()
    {
        put.request = Some(RequestId::default());
    }
    TransactRequest { conditions, ops, request: None }
}

fn condition(text: &str) -> KvCondition {
    use kv_condition::Test;
    let parts: Vec<&str> = text.split(':').collect();
    let test = match parts[1..] {
        ["absent"] => Some(Test::Exists(false)),
        ["exists"] => Some(Test::Exists(true)),
        ["rev", rev] => Some(Test::ModRev(rev.parse().unwrap())),
        ["version", version] => Some(Test::Version(version.parse().unwrap())),
        ["value", value] => Some(Test::Value(Bytes::copy_from_slice(value.as_bytes()))),
        _ => None,
    };
    KvCondition { key: parts[0].to_owned(), test }
}

fn op(text: &str) -> TransactOp {
    use transact_op::Op;
    let parts: Vec<&str> = text.split(':').collect();
    let value = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let publish = |subject: &str, payload: &str| PublishRequest {
        messages: vec![BusMessage { subject: subject.to_owned(), payload: value(payload), ..BusMessage::default() }],
        ..PublishRequest::default()
    };
    let op = match parts[..] {
        ["put", key, text] => {
            Some(Op::Put(KvPutRequest { key: key.to_owned(), value: value(text), ..KvPutRequest::default() }))
        }
        ["add", key, text] => Some(Op::Put(KvPutRequest {
            key: key.to_owned(),
            value: value(text),
            merge: KvMerge::Add as i32,
            ..KvPutRequest::default()
        })),
        ["del", key] => Some(Op::Delete(KvDeleteRequest { key: key.to_owned(), ..KvDeleteRequest::default() })),
        ["ack", queue, seq, token] => Some(Op::Ack(AckItem {
            subscription: queue.to_owned(),
            seq: seq.parse().unwrap(),
            token: token.parse().unwrap(),
            kind: AckKind::Ack as i32,
            ..AckItem::default()
        })),
        ["pub", subject, payload, queue] => {
            Some(Op::Publish(PublishRequest { ensure_subscription: queue.to_owned(), ..publish(subject, payload) }))
        }
        ["must", subject, payload] => {
            Some(Op::Publish(PublishRequest { must_match: true, ..publish(subject, payload) }))
        }
        ["flood", subject, copies] => {
            let message = BusMessage { subject: subject.to_owned(), ..BusMessage::default() };
            Some(Op::Publish(PublishRequest {
                messages: vec![message; copies.parse().unwrap()],
                ..PublishRequest::default()
            }))
        }
        _ => None,
    };
    TransactOp { op }
}

/// How an answer is shown.
pub(crate) fn show(body: &answer::Body) -> Option<String> {
    use answer::Body as B;
    Some(match body {
        B::KvPut(r) | B::KvRollback(r) => entry(r.entry.as_ref().unwrap()),
        B::KvDelete(r) => deleted(r.deleted),
        B::SetKvPolicy(_) => "set".to_owned(),
        B::DeleteKvPolicy(_) => "removed".to_owned(),
        B::Transact(r) if r.results.len() > 8 => format!("{} done", r.results.len()),
        B::Transact(r) => r.results.iter().map(result).collect::<Vec<_>>().join(", "),
        _ => return None,
    })
}

/// What a reading verb says.
pub(crate) fn read(machine: &Machine, _now_ms: u64, line: &Line<'_>) -> Option<String> {
    let (rooms, rows) = (machine.rooms(), &machine.rows);
    Some(match line.verb {
        "kv_get" => {
            let found = rooms.kv.get(rows, &line.id(), line.number("version", 0)).unwrap();
            found.map_or("none".to_owned(), |found| entry(&found))
        }
        "kv_list" => list(machine, line),
        "kv_history" => {
            let req = KvHistoryRequest {
                key: line.id(),
                limit: line.small("limit", 0),
                before_version: line.number("before", 0),
                without_values: line.plain.contains(&"keys"),
                consistency: 0,
            };
            joined(rooms.kv.history(rows, &req).unwrap().iter().map(entry).collect(), "\n")
        }
        "kv_policies" => {
            let shown = |policy: &KvPolicy| {
                format!("{:?} versions={} age={}", policy.prefix, policy.versions, policy.max_age_ms)
            };
            joined(rooms.kv.policies().map(shown).collect(), ", ")
        }
        "kv_totals" => {
            let (keys, bytes) = rooms.kv.totals();
            format!("keys={keys} bytes={bytes}")
        }
        "kv_chunks" => {
            let table = Key::table(Table::Chunk);
            let (mut chunks, mut references) = (0, 0);
            rows.scan(table.as_bytes(), &table.prefix_end(), &mut |_, value| {
                chunks += 1;
                references += u64::from_be_bytes(value.try_into().unwrap());
                Ok(true)
            })
            .unwrap();
            format!("chunks={chunks} references={references}")
        }
        _ => return None,
    })
}

/// Every page, one after another.
fn list(machine: &Machine, line: &Line<'_>) -> String {
    let mut req = KvListRequest {
        prefix: line.text("prefix"),
        from: line.text("from"),
        to: line.text("to"),
        limit: line.small("limit", 0),
        project_id: line.text("project"),
        updated_from_ms: line.number("since", 0),
        ..KvListRequest::default()
    };
    let mut pages = Vec::new();
    loop {
        let (page, next) = machine.rooms().kv.list(&machine.rows, &req).unwrap();
        pages.push(joined(page.into_iter().map(|entry| entry.key).collect(), " "));
        if next.is_empty() {
            return pages.join(" | ");
        }
        req.from = next;
    }
}

fn entry(entry: &KvEntry) -> String {
    let mut shown = format!("{} v{} rev={}", entry.key, entry.version, entry.mod_rev);
    if entry.create_rev != entry.mod_rev {
        shown.push_str(&format!(" created={}", entry.create_rev));
    }
    if entry.deleted {
        shown.push_str(" deleted");
    }
    let labels: Vec<String> = entry.labels.iter().map(|label| format!("{}:{}", label.key, label.value)).collect();
    let until = if entry.expires_at_ms > 0 { entry.expires_at_ms.to_string() } else { String::new() };
    let blob = entry.blob.as_ref().map(|blob| blob.size_bytes.to_string()).unwrap_or_default();
    let value = match entry.value.len() {
        length if length > 100 => format!("({length} bytes)"),
        _ => String::from_utf8_lossy(&entry.value).into_owned(),
    };
    for (name, text) in [
        ("session", &entry.session_id),
        ("until", &until),
        ("type", &entry.content_type),
        ("project", &entry.project_id),
        ("labels", &labels.join(",")),
        ("by", &entry.updated_by),
        ("blob", &blob),
        ("value", &value),
    ] {
        if !text.is_empty() {
            shown.push_str(&format!(" {name}={text}"));
        }
    }
    shown
}

fn result(result: &TransactResult) -> String {
    use transact_result::Result as R;
    match result.result.as_ref().unwrap() {
        R::Put(written) => entry(written),
        R::Deleted(there_was) => deleted(*there_was),
        R::Acked(_) => "acked".to_owned(),
        R::Publish(r) if r.published.len() > 8 => format!("{} published", r.published.len()),
        R::Publish(r) => {
            let each = r.published.iter().map(|one| format!("published seq={} matched={}", one.seq, one.matched));
            each.collect::<Vec<_>>().join(" ")
        }
    }
}

fn deleted(there_was: bool) -> String {
    (if there_was { "deleted" } else { "not there" }).to_owned()
}

fn joined(all: Vec<String>, between: &str) -> String {
    if all.is_empty() { "none".to_owned() } else { all.join(between) }
}
