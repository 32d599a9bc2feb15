//! `quorate backup`: copies of the whole state, outside of the cluster: taken, planned, listed, checked, removed.
//!
//! Taking and planning is asked of the cluster. Listing, checking and removing read the target itself, from this
//! machine: that works when there is no cluster any more. Only where the target is, is asked of the cluster, unless it is said.

mod shown;

use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use quorate_client::v1::BackupPolicy;
use serde_json::{Value, json};
use tokio::time::Instant;

use self::shown::{amount, backups_table, manifest_view, policy_view, record_line, record_view, status_text};
use super::exit::Failure;
use super::output::now_ms;
use super::{Context, values};
use crate::backup::{KEEP_NEWEST, Manifest, Target, check_url, list, prune, verify};

/// Shown under `quorate backup` and each of its commands that take a target.
const TARGETS: &str = "\
TARGETS:
  /mnt/nas/quorate       a directory, which must exist; also written file:///mnt/nas/quorate
  s3://bucket/prefix     S3 or what speaks like it. AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and, if it is
                         not Amazon's, AWS_ENDPOINT (and AWS_ALLOW_HTTP=true for http) are taken from the environment:
                         that of the nodes for create and schedule, that of this command for the others

The leader writes to the target, and any node may come to lead: a directory must be one that every node can reach under
the same path, such as an NFS mount. Otherwise backups are on the disk of the node that led, and `quorate backup status`
says which one that was.";

const CREATE_EXAMPLES: &str = "\
EXAMPLES:
  quorate backup create --to /mnt/nas/quorate
      takes one now; writes go on meanwhile, and what an earlier one sent is not sent again
  quorate backup create
      to the target of the schedule";

const SCHEDULE_EXAMPLES: &str = "\
EXAMPLES:
  quorate backup schedule --to s3://backups/quorate --every 6h --keep 90d
      takes one every six hours, and removes those that are older than ninety days; the newest always stays
  quorate backup schedule --every 1h
      changes that alone
  quorate backup schedule --off
      takes no more; those that were taken stay

A target that fails is tried again after 1m, then 2m, 4m and so on, at most 1h. The clocks of nodes, and of machines
from which somebody prunes, must not differ by more than ten minutes.";

const VERIFY_EXAMPLES: &str = "\
EXAMPLES:
  quorate backup verify latest --from /mnt/nas/quorate
      reads all of it, opens the state and computes the digest of its rows anew; needs room for it in TMPDIR
  quorate backup verify latest --quick
      only looks whether everything is there in the right size";

/// `quorate backup …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Take a backup now, on the leader
    #[command(after_help = CREATE_EXAMPLES, after_long_help = long(CREATE_EXAMPLES))]
    Create {
        /// Where to; without it, the target of the schedule
        #[arg(long, value_name = "URL|DIR")]
        to: Option<String>,
    },
    /// List the backups of a target, oldest first
    #[command(after_long_help = TARGETS)]
    List(Source),
    /// Check that a backup is whole
    #[command(after_help = VERIFY_EXAMPLES, after_long_help = long(VERIFY_EXAMPLES))]
    Verify {
        /// The backup, as `list` names it; or latest
        #[arg(value_name = "ID")]
        id: String,
        #[command(flatten)]
        from: Source,
        /// Only look whether everything is there in the right size
        #[arg(long)]
        quick: bool,
    },
    /// Say when backups are taken and how long they stay; what is left out stays as it is
    #[command(after_help = SCHEDULE_EXAMPLES, after_long_help = long(SCHEDULE_EXAMPLES))]
    Schedule(ScheduleFlags),
    /// Show the schedule, how the last backups went, and when the next one is due
    Status,
    /// Remove backups that are older than they need be; the newest stays
    #[command(after_long_help = TARGETS)]
    Prune {
        #[command(flatten)]
        from: Source,
        /// How old they may be; without it, as the schedule says
        #[arg(long, value_name = "DURATION", value_parser = values::duration)]
        keep: Option<Duration>,
    },
}

/// Where to look.
#[derive(Args)]
pub(crate) struct Source {
    /// The target; without it, that of the cluster's schedule
    #[arg(long, value_name = "URL|DIR")]
    from: Option<String>,
}

/// A policy, or parts of one.
#[derive(Args)]
#[group(required = true, multiple = true)]
pub(crate) struct ScheduleFlags {
    /// Where to
    #[arg(long, value_name = "URL|DIR")]
    to: Option<String>,
    /// How long from one to the next, at least 1m (6h if it was never said)
    #[arg(long, value_name = "DURATION", value_parser = values::positive_duration)]
    every: Option<Duration>,
    /// How long each stays (90d if it was never said)
    #[arg(long, value_name = "DURATION", value_parser = values::positive_duration)]
    keep: Option<Duration>,
    /// Take no more
    #[arg(long, conflicts_with_all = ["to", "every", "keep"])]
    off: bool,
}

impl ScheduleFlags {
    /// The policy to set, over the one that holds now.
    fn over(&self, now: BackupPolicy) -> Result<BackupPolicy, Failure> {
        if self.off {
            return Ok(BackupPolicy { target: String::new(), ..now });
        }
        let target = match &self.to {
            Some(to) => target_url(to)?,
            None if now.target.is_empty() => {
                return Err(Failure::bad_input("to: no target is set yet; say where backups go"));
            }
            None => now.target,
        };
        Ok(BackupPolicy {
            target,
            every_ms: self.every.map_or(now.every_ms, values::millis),
            keep_ms: self.keep.map_or(now.keep_ms, values::millis),
        })
    }
}

fn long(examples: &str) -> String {
    format!("{examples}\n\n{TARGETS}")
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Create { to } => create(context, to.as_deref()).await,
        Command::List(from) => show_list(context, &from).await,
        Command::Verify { id, from, quick } => check(context, &id, &from, quick).await,
        Command::Schedule(flags) => schedule(context, &flags).await,
        Command::Status => status(context).await,
        Command::Prune { from, keep } => remove(context, &from, keep).await,
    }
}

async fn create(context: &Context, to: Option<&str>) -> Result<(), Failure> {
    let target = to.map(target_url).transpose()?.unwrap_or_default();
    let record = context.client.backups().create(&target, telling(context, "sent")).await?;
    if !record.error.is_empty() {
        let (node, error) = (record.node_id, &record.error);
        return Err(Failure::failed(format!("there is no backup: node {node}: {error}")));
    }
    context.out.show(|| record_view(&record), || record_line(&record))
}

async fn show_list(context: &Context, from: &Source) -> Result<(), Failure> {
    let target = from.open(context).await?;
    let manifests = list(&target).await.map_err(|error| Failure::from_anyhow(&error))?;
    context.out.show(
        || json!({ "target": target.url(), "backups": manifests.iter().map(manifest_view).collect::<Vec<_>>() }),
        || backups_table(&manifests, now_ms()),
    )
}

async fn check(context: &Context, id: &str, from: &Source, quick: bool) -> Result<(), Failure> {
    let target = from.open(context).await?;
    let checked = verify(&target, id, quick, &mut telling(context, "read")).await;
    let manifest: Manifest = checked.map_err(|error| Failure::from_anyhow(&error))?;
    context.out.show(
        || {
            let mut view = manifest_view(&manifest);
            if let Value::Object(fields) = &mut view {
                fields.insert("verified".to_owned(), json!(if quick { "sizes" } else { "content" }));
            }
            view
        },
        || {
            let (objects, bytes) = (manifest.objects().len(), amount(manifest.bytes()));
            let what =
                if quick { "is there, by its sizes" } else { "is whole: every object, and the digest of all rows" };
            format!("{} {what} ({objects} objects, {bytes})", manifest.id)
        },
    )
}

async fn schedule(context: &Context, flags: &ScheduleFlags) -> Result<(), Failure> {
    let backups = context.client.backups();
    let now = backups.status().await?.policy.unwrap_or_default();
    let policy = flags.over(now)?;
    let answer = backups.set_policy(policy.clone()).await?;
    context.out.show(|| json!({ "policy": policy_view(&policy), "rev": answer.rev }), || shown::policy_line(&policy))
}

async fn status(context: &Context) -> Result<(), Failure> {
    let status = context.client.backups().status().await?;
    context.out.show(|| shown::status_view(&status), || status_text(&status, now_ms()))
}

async fn remove(context: &Context, from: &Source, keep: Option<Duration>) -> Result<(), Failure> {
    let keep_ms = match keep {
        Some(keep) => values::millis(keep),
        None => context.client.backups().status().await?.policy.unwrap_or_default().keep_ms,
    };
    let target = from.open(context).await?;
    let pruned = prune(&target, "quorate backup prune", keep_ms, now_ms(), KEEP_NEWEST).await;
    let pruned = pruned.map_err(|error| Failure::from_anyhow(&error))?;
    context.out.show(
        || {
            json!({
                "target": target.url(),
                "removed": pruned.backups,
                "removed_objects": pruned.objects,
                "removed_bytes": pruned.bytes,
                "kept": pruned.kept,
            })
        },
        || {
            let (gone, objects, bytes) = (pruned.backups.len(), pruned.objects, amount(pruned.bytes));
            format!("{gone} backups removed ({objects} objects, {bytes}); {} kept", pruned.kept)
        },
    )
}

impl Source {
    async fn open(&self, context: &Context) -> Result<Target, Failure> {
        let url = match &self.from {
            Some(from) => target_url(from)?,
            None => context.client.backups().status().await?.policy.unwrap_or_default().target,
        };
        if url.is_empty() {
            return Err(Failure::bad_input("from: the cluster has no target set; say where the backups are"));
        }
        Target::open(&url).map_err(|error| Failure::from_anyhow(&error.context(url.clone())))
    }
}

/// A plain path means a directory.
pub(super) fn target_url(text: &str) -> Result<String, Failure> {
    let url = if text.contains("://") {
        text.to_owned()
    } else {
        let path =
            std::path::absolute(Path::new(text)).map_err(|error| Failure::bad_input(format!("{text}: {error}")))?;
        let path = path.to_str().ok_or_else(|| Failure::bad_input(format!("{text}: not UTF-8")))?;
        format!("file://{path}")
    };
    check_url(&url).map_err(Failure::bad_input)?;
    Ok(url)
}

/// One line a second, if somebody watches.
fn telling(context: &Context, done: &'static str) -> impl FnMut(u64, u64) + Send + use<> {
    let (out, mut told) = (context.out, Instant::now());
    move |done_bytes, bytes| {
        if told.elapsed() >= Duration::from_secs(1) {
            told = Instant::now();
            out.progress(&format!("{} of {} {done}", amount(done_bytes), amount(bytes)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Option<Command> {
        crate::cli::subcommand(line.split(' ')).ok()
    }

    #[test]
    fn a_schedule_changes_what_is_said() {
        let now = BackupPolicy { target: "s3://b/p".to_owned(), every_ms: 3_600_000, keep_ms: 7_200_000 };
        let over = |line: &str, now: &BackupPolicy| {
            let Some(Command::Schedule(flags)) = parsed(line) else { panic!("{line}") };
            flags.over(now.clone())
        };
        let changed = over("backup schedule --every 30m", &now).unwrap();
        assert_eq!(changed, BackupPolicy { every_ms: 1_800_000, ..now.clone() });
        let moved = over("backup schedule --to /mnt/nas --keep 1d", &now).unwrap();
        assert_eq!((moved.target.as_str(), moved.keep_ms), ("file:///mnt/nas", 86_400_000));
        assert_eq!(over("backup schedule --off", &now).unwrap(), BackupPolicy { target: String::new(), ..now });
        let error = over("backup schedule --every 30m", &BackupPolicy::default()).unwrap_err();
        assert_eq!((error.code(), error.to_string().contains("no target is set")), (2, true));
        assert!(parsed("backup schedule").is_none() && parsed("backup schedule --off --every 1h").is_none());
    }

    #[test]
    fn a_path_becomes_a_url() {
        assert_eq!(target_url("/mnt/nas").unwrap(), "file:///mnt/nas");
        assert_eq!(target_url("s3://bucket/a").unwrap(), "s3://bucket/a");
        let here = std::env::current_dir().unwrap();
        assert_eq!(target_url("backups").unwrap(), format!("file://{}/backups", here.display()));
        assert_eq!(target_url("ftp://x/y").unwrap_err().code(), 2);
        assert!(parsed("backup verify").is_none() && parsed("backup verify latest --from x --quick").is_some());
    }
}
