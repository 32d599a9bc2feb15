//! Documents and their versions as they are, and as they change.

use std::time::Duration;

use clap::Args;
use quorate_client::v1::{KvEntry, KvHistoryRequest, KvListRequest, WatchFilter, WatchRequest};
use serde_json::{Value, json};

use crate::cli::exit::Failure;
use crate::cli::output::{age, facts, now_ms, or_dash, short, span, table};
use crate::cli::{Context, events, values, view};

pub(super) const GET_EXAMPLES: &str = "\
EXAMPLES:
  quorate kv get agents/a1/plan
      the value as it was put
  quorate kv get agents/a1/plan -o json
      with its mod_rev, which --if-rev of a put asks for
  quorate kv get agents/a1/plan --version 3 --meta
      what is known of an earlier version

Exit code 3: there is no such document, or no such version any more.";

pub(super) const LIST_EXAMPLES: &str = "\
EXAMPLES:
  quorate kv list agents/a1/
      the documents whose keys begin so
  quorate kv list results/ --since 24h --limit 1000
      those that were written within a day
  quorate kv list agents/ --keys-only
      a key a line, for a script";

/// The most that one call brings.
const PAGE: usize = 1_000;

/// Flags of `quorate kv get`.
#[derive(Args)]
pub(crate) struct GetArgs {
    /// The document
    #[arg(value_name = "KEY")]
    key: String,
    /// An earlier version (default: the current one)
    #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    version: Option<u64>,
    /// What is known of it instead of its value
    #[arg(long)]
    meta: bool,
}

/// Flags of `quorate kv list`.
#[derive(Args)]
pub(crate) struct ListArgs {
    /// Only keys that begin so
    #[arg(value_name = "PREFIX")]
    prefix: Option<String>,
    /// Only keys from this one on
    #[arg(long, value_name = "KEY")]
    from: Option<String>,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Without values; as text, a key a line
    #[arg(long)]
    keys_only: bool,
    /// Only what was written so long ago at most
    #[arg(long, value_name = "DURATION", value_parser = values::positive_duration)]
    since: Option<Duration>,
    /// Only documents of this project
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
}

pub(super) async fn get(context: &Context, args: &GetArgs) -> Result<(), Failure> {
    let kv = context.client.kv();
    let found = kv.get_version(&args.key, args.version.unwrap_or_default()).await?;
    let entry = found.ok_or_else(|| match args.version {
        Some(version) => Failure::not_found(format!("version {version} of {} is not kept", args.key)),
        None => Failure::not_found(format!("no document {}", args.key)),
    })?;
    if args.meta {
        return context.out.show(|| json!({ "entry": view::kv_facts(&entry) }), || entry_facts(&entry));
    }
    let value = kv.value(&entry).await?;
    context.out.content(|| json!({ "entry": view::kv_entry(&entry, &value) }), &value)
}

pub(super) async fn list(context: &Context, args: &ListArgs) -> Result<(), Failure> {
    let limit = args.limit as usize;
    let mut request = KvListRequest {
        prefix: args.prefix.clone().unwrap_or_default(),
        from: args.from.clone().unwrap_or_default(),
        keys_only: args.keys_only,
        updated_from_ms: args.since.map_or(0, |since| now_ms().saturating_sub(values::millis(since))),
        project_id: args.project.clone().unwrap_or_default(),
        ..KvListRequest::default()
    };
    let mut entries: Vec<KvEntry> = Vec::new();
    let rev = loop {
        let wanted = limit.saturating_sub(entries.len()).min(PAGE);
        request.limit = u32::try_from(wanted).unwrap_or(u32::MAX);
        let page = context.client.kv().list(request.clone()).await?;
        entries.extend(page.entries);
        // A page may hold nothing and still have a next one: filters are applied to what the range has.
        request.from = page.next;
        if request.from.is_empty() || entries.len() >= limit {
            break page.rev;
        }
    };
    if !request.from.is_empty() {
        context.out.note(&format!("there is more: --from {}", request.from));
    }
    context.out.show(
        || {
            let entries: Vec<Value> = entries.iter().map(|entry| listed(entry, args.keys_only)).collect();
            json!({ "entries": entries, "next": request.from, "rev": rev })
        },
        || {
            if args.keys_only {
                entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>().join("\n")
            } else {
                entry_table(&entries)
            }
        },
    )
}

pub(super) async fn history(context: &Context, key: &str, limit: u32) -> Result<(), Failure> {
    let request = KvHistoryRequest { key: key.to_owned(), limit, ..KvHistoryRequest::default() };
    let answer = context.client.kv().history(request).await?;
    context.out.show(
        || {
            let versions: Vec<Value> = answer.versions.iter().map(|entry| listed(entry, false)).collect();
            json!({ "versions": versions, "rev": answer.rev })
        },
        || {
            let now = now_ms();
            let header = ["version", "mod_rev", "age", "size", "by", "value"];
            let rows = answer.versions.iter().map(|entry| version_row(entry, now)).collect();
            table(header, rows, "no version is kept")
        },
    )
}

pub(super) async fn watch(context: &Context, prefix: &str) -> Result<(), Failure> {
    let filter = WatchFilter { room: "kv".to_owned(), prefix: prefix.to_owned(), ..WatchFilter::default() };
    events::follow(context, WatchRequest { filters: vec![filter], ..WatchRequest::default() }, None).await
}

/// With the value that stands in the log; what lies beside it is told by its name and size.
fn listed(entry: &KvEntry, keys_only: bool) -> Value {
    if keys_only { view::kv_facts(entry) } else { view::kv_entry(entry, &entry.value) }
}

fn entry_table(entries: &[KvEntry]) -> String {
    let now = now_ms();
    let header = ["key", "version", "mod_rev", "age", "size", "by", "value"];
    let rows = entries.iter().map(|entry| {
        let [version, mod_rev, age, size, by, value] = version_row(entry, now);
        [entry.key.clone(), version, mod_rev, age, size, by, value]
    });
    table(header, rows.collect(), "no documents")
}

fn version_row(entry: &KvEntry, now_ms: u64) -> [String; 6] {
    let value = if entry.deleted { "removed".to_owned() } else { short(&view::bytes_line(&entry.value), 60) };
    [
        entry.version.to_string(),
        entry.mod_rev.to_string(),
        age(entry.updated_at_ms, now_ms),
        size(entry).to_string(),
        or_dash(&entry.updated_by),
        or_dash(&value),
    ]
}

fn size(entry: &KvEntry) -> u64 {
    entry.blob.as_ref().map_or(entry.value.len() as u64, |blob| blob.size_bytes)
}

fn entry_facts(entry: &KvEntry) -> String {
    let now = now_ms();
    let goes = match entry.expires_at_ms {
        0 if entry.session_id.is_empty() => String::new(),
        0 => format!("with session {}", entry.session_id),
        at_ms => format!("in {}", span(at_ms.saturating_sub(now))),
    };
    facts(vec![
        ("key", entry.key.clone()),
        ("version", entry.version.to_string()),
        ("mod_rev", entry.mod_rev.to_string()),
        ("create_rev", entry.create_rev.to_string()),
        ("written", format!("{} ago", age(entry.updated_at_ms, now))),
        ("by", entry.updated_by.clone()),
        ("goes", goes),
        ("size", format!("{} bytes{}", size(entry), if entry.blob.is_some() { ", beside the log" } else { "" })),
        ("content type", entry.content_type.clone()),
        ("project", entry.project_id.clone()),
        ("labels", view::pairs_line(&entry.labels)),
    ])
}

#[cfg(test)]
mod tests {
    use quorate_client::v1::BlobRef;

    use super::super::Command;
    use super::super::tests::parsed;
    use super::*;

    #[test]
    fn a_list_is_narrowed_by_its_flags() {
        let Some(Command::List(args)) = parsed(&["list", "results/", "--since", "24h", "--keys-only"]) else {
            panic!("not understood")
        };
        assert_eq!((args.prefix.as_deref(), args.since), (Some("results/"), Some(Duration::from_secs(86_400))));
        assert!(args.keys_only && args.limit == 100);
        let Some(Command::Get(args)) = parsed(&["get", "a", "--version", "3", "--meta"]) else { panic!("no") };
        assert!(args.meta && args.version == Some(3));
        assert!(parsed(&["get"]).is_none() && parsed(&["list", "--limit", "0"]).is_none());
    }

    #[test]
    fn a_row_shows_what_a_version_was() {
        let entry = KvEntry {
            key: "a".into(),
            value: "{\"step\": 1}".into(),
            version: 3,
            mod_rev: 7,
            updated_at_ms: 1_000,
            ..KvEntry::default()
        };
        assert_eq!(version_row(&entry, 6_000), ["3", "7", "5.0s", "11", "-", "{\"step\":1}"].map(str::to_owned));
        assert_eq!(version_row(&KvEntry { deleted: true, ..KvEntry::default() }, 0)[5], "removed");
        let large = KvEntry { blob: Some(BlobRef { size_bytes: 1 << 30, ..BlobRef::default() }), ..entry };
        assert_eq!(size(&large), 1 << 30);
        assert!(entry_facts(&large).contains("beside the log"));
    }
}
