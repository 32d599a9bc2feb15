//! Writes to one document.

use std::time::Duration;

use clap::{Args, ValueEnum};
use quorate_client::KvPut;
use quorate_client::v1::{KeyValue, KvMerge, KvPutResponse, KvRollbackRequest};
use serde_json::json;

use crate::cli::exit::Failure;
use crate::cli::{Context, submit, values, view};

pub(super) const EXAMPLES: &str = "\
EXAMPLES:
  quorate kv put agents/a1/plan '{\"step\": 1}'
      whatever is there
  quorate kv put counter 8 --if-rev 4711
      only if nobody else wrote since it was read at mod_rev 4711
  quorate kv put leader a1 --if-absent --ttl 30s
      only if there is none; it goes half a minute later unless it is put again
  quorate kv put runs 1 --merge add
      one more, however many add at the same time
  quorate kv put config '{\"debug\": null, \"level\": 3}' --merge json
      removes one member and sets another
  make report | quorate kv put results/a1/42 - --content-type text/markdown --label run=42
      from stdin; what is larger than 1 MiB lies beside the log

Without a condition, a put whose outcome is unknown (exit code 5) is not repeated.";

/// Flags of `quorate kv put`.
#[derive(Args)]
pub(crate) struct PutArgs {
    /// The document: 1 to 512 bytes
    #[arg(value_name = "KEY")]
    key: String,
    /// The value; - reads stdin
    #[arg(
        value_name = "VALUE",
        required_unless_present = "file",
        conflicts_with = "file",
        allow_negative_numbers = true
    )]
    value: Option<String>,
    /// Read the value from this file
    #[arg(long, value_name = "FILE")]
    file: Option<String>,
    /// Only if this is its mod_rev
    #[arg(long, value_name = "REV", conflicts_with = "if_absent", value_parser = clap::value_parser!(u64).range(1..))]
    if_rev: Option<u64>,
    /// Only if there is no such document
    #[arg(long)]
    if_absent: bool,
    /// How it meets the value that is there
    #[arg(long, value_enum, value_name = "HOW", default_value = "replace")]
    merge: Merge,
    /// It goes after so long without another put, at most 365d (default: it stays)
    #[arg(long, value_name = "DURATION", value_parser = values::positive_duration)]
    ttl: Option<Duration>,
    /// A label, in place of those it has; repeat for several, at most 32
    #[arg(long, value_name = "NAME=VALUE", value_parser = submit::pair)]
    label: Vec<KeyValue>,
    /// The project that it belongs to (default: as it was)
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// What it is, such as application/json (default: as it was)
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// Who writes it, for whoever reads its history
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

/// [`KvMerge`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Merge {
    /// It takes its place
    Replace,
    /// JSON objects are merged, null removes a member (RFC 7396)
    Json,
    /// Both are integers: their sum
    Add,
    /// Both are JSON arrays of texts: their union, sorted
    SetAdd,
    /// Both are JSON arrays of texts: those that are not named
    SetRemove,
    /// Its bytes follow
    Append,
    /// Both are JSON arrays: its elements follow
    JsonAppend,
}

impl From<Merge> for KvMerge {
    fn from(merge: Merge) -> Self {
        match merge {
            Merge::Replace => KvMerge::Replace,
            Merge::Json => KvMerge::JsonPatch,
            Merge::Add => KvMerge::Add,
            Merge::SetAdd => KvMerge::SetAdd,
            Merge::SetRemove => KvMerge::SetRemove,
            Merge::Append => KvMerge::Append,
            Merge::JsonAppend => KvMerge::JsonAppend,
        }
    }
}

impl PutArgs {
    async fn value(&self) -> Result<Vec<u8>, Failure> {
        match (&self.value, &self.file) {
            (Some(text), _) if text != "-" => Ok(text.clone().into_bytes()),
            (Some(stdin), _) => Ok(values::read_input(stdin.clone()).await?.1),
            (None, Some(file)) => Ok(values::read_input(file.clone()).await?.1),
            (None, None) => Err(Failure::bad_input("expected a value, or --file")),
        }
    }

    /// The put that they describe.
    fn describe(self, mut put: KvPut) -> KvPut {
        put = put.merge(self.merge.into());
        if let Some(rev) = self.if_rev {
            put = put.if_rev(rev);
        }
        if self.if_absent {
            put = put.if_absent();
        }
        if let Some(ttl) = self.ttl {
            put = put.ttl(ttl);
        }
        for label in self.label {
            put = put.label(label.key, label.value);
        }
        if let Some(project) = self.project {
            put = put.project(project);
        }
        if let Some(content_type) = self.content_type {
            put = put.content_type(content_type);
        }
        if let Some(who) = self.by {
            put = put.updated_by(who);
        }
        put
    }
}

pub(super) async fn put(context: &Context, args: PutArgs) -> Result<(), Failure> {
    let value = args.value().await?;
    let put = context.client.kv().put(&args.key, value);
    told(context, args.describe(put).send().await?)
}

pub(super) async fn delete(context: &Context, key: &str, if_rev: Option<u64>) -> Result<(), Failure> {
    let mut delete = context.client.kv().delete(key);
    if let Some(rev) = if_rev {
        delete = delete.if_rev(rev);
    }
    let answer = delete.send().await?;
    context.out.show(
        || json!({ "key": key, "deleted": answer.deleted, "rev": answer.rev }),
        || if answer.deleted { format!("{key} is deleted") } else { format!("there was no {key}") },
    )
}

pub(super) async fn rollback(context: &Context, key: String, version: u64, if_rev: Option<u64>) -> Result<(), Failure> {
    let if_mod_rev = if_rev.unwrap_or_default();
    let request = KvRollbackRequest { key, version, if_mod_rev, ..KvRollbackRequest::default() };
    told(context, context.client.kv().rollback(None, request).await?)
}

/// One line of what was written.
fn told(context: &Context, answer: KvPutResponse) -> Result<(), Failure> {
    let entry = answer.entry.unwrap_or_default();
    context.out.show(
        || json!({ "entry": view::kv_facts(&entry), "rev": answer.rev }),
        || format!("{}: version {}, mod_rev {}", entry.key, entry.version, entry.mod_rev),
    )
}

#[cfg(test)]
mod tests {
    use quorate_client::v1::KvPutRequest;
    use quorate_client::{Client, Config};

    use super::super::Command;
    use super::super::tests::parsed;
    use super::*;

    fn asked(line: &[&str]) -> Option<PutArgs> {
        match parsed(&[&["put"][..], line].concat())? {
            Command::Put(args) => Some(*args),
            _ => None,
        }
    }

    async fn request(line: &[&str]) -> KvPutRequest {
        let args = asked(line).unwrap();
        let value = args.value().await.unwrap();
        let client = Client::connect(Config::new(["127.0.0.1:1"])).unwrap();
        let put = client.kv().put(&args.key, value);
        args.describe(put).into()
    }

    #[tokio::test]
    async fn every_part_of_a_put_has_a_flag() {
        let line = "a 1 --if-rev 7 --merge json-append --ttl 1h --label x=1 --label y=2 --project p --by me";
        let line: Vec<&str> = line.split(' ').chain(["--content-type", "text/plain"]).collect();
        let put = request(&line).await;
        assert_eq!((put.key.as_str(), &put.value[..], put.if_mod_rev), ("a", &b"1"[..], 7));
        assert_eq!((put.merge(), put.ttl_ms, put.labels.len()), (KvMerge::JsonAppend, 3_600_000, 2));
        assert_eq!((put.project_id.as_str(), put.content_type.as_str()), ("p", "text/plain"));
        assert_eq!(put.updated_by, "me");
    }

    #[tokio::test]
    async fn a_value_may_be_negative_and_a_condition_is_one() {
        let put = request(&["counter", "-1", "--merge", "add"]).await;
        assert_eq!((&put.value[..], put.merge(), put.if_absent), (&b"-1"[..], KvMerge::Add, false));
        assert!(request(&["a", "x", "--if-absent"]).await.if_absent);
        for wrong in [&["a"][..], &["a", "x", "--file", "f"], &["a", "x", "--if-absent", "--if-rev", "1"]] {
            assert!(asked(wrong).is_none(), "{wrong:?}");
        }
        assert!(asked(&["a", "-"]).is_some() && asked(&["a", "--file", "f"]).is_some());
    }
}
