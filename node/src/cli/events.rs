//! `quorate events`: what happened to every object, and what happens next.
//!
//! Owns paging through the history and following it without a gap. `object` reads what an event brings.
//! Deliberately absent: messages of the bus, which are no objects; `quorate bus sub` brings those.

mod object;

use std::time::Duration;

use clap::Args;
use quorate_client::v1::{Event, EventKind, EventsRequest, WatchFilter, WatchRequest};
use serde_json::{Value, json};

use self::object::Object;
use super::exit::Failure;
use super::output::{now_ms, table};
use super::{Context, values};
use crate::calendar::written;

/// Shown under `quorate events --help`.
pub(crate) const EXAMPLES: &str = "\
EXAMPLES:
  quorate events --room tasks --last 10m
      what happened to tasks, oldest first
  quorate events --room kv --prefix agents/ -f
      what happens to these documents from now on, until Ctrl-C
  quorate events --key nightly --room schedules -o json
      everything about one object, a line each, with the object as it was
  quorate events --from 4711 -f --limit 1
      the next event from a rev on, whether it has happened or will

ROOMS:
  sessions, agents, tasks, attempts, locks, scopes, kv, subscriptions, dead_messages, breakers,
  schedules, runs, limits, shares, retries, checkpoints";

/// The most that one call brings.
const PAGE: u32 = 1_000;
const DEFAULT_LIMIT: u32 = 100;

/// Flags of `quorate events`.
#[derive(Args)]
pub(crate) struct EventsArgs {
    /// Only objects of this room, such as tasks or kv (see below)
    #[arg(long, value_name = "ROOM")]
    room: Option<String>,
    /// Only the object of this key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Only objects whose keys begin so
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// From this rev on (default: from the oldest that is kept; with --follow, from now on)
    #[arg(long, value_name = "REV", value_parser = clap::value_parser!(u64).range(1..))]
    from: Option<u64>,
    /// Up to this rev (default: the newest)
    #[arg(long, value_name = "REV", conflicts_with = "follow", value_parser = clap::value_parser!(u64).range(1..))]
    to: Option<u64>,
    /// Only what happened so long ago at most
    #[arg(long, value_name = "DURATION", conflicts_with = "from", value_parser = values::positive_duration)]
    last: Option<Duration>,
    /// How many at most (default 100; with --follow, no end)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Leave out what the objects were
    #[arg(long)]
    keys_only: bool,
    /// Stay, and print what happens as it happens
    #[arg(short, long)]
    follow: bool,
}

impl EventsArgs {
    fn filters(&self) -> Vec<WatchFilter> {
        let filter = WatchFilter {
            room: self.room.clone().unwrap_or_default(),
            key: self.key.clone().unwrap_or_default(),
            prefix: self.prefix.clone().unwrap_or_default(),
        };
        if filter == WatchFilter::default() { Vec::new() } else { vec![filter] }
    }

    fn past(&self) -> EventsRequest {
        EventsRequest {
            filters: self.filters(),
            from_rev: self.from.unwrap_or_default(),
            to_rev: self.to.unwrap_or_default(),
            from_ms: self.last.map_or(0, |last| now_ms().saturating_sub(values::millis(last))),
            keys_only: self.keys_only,
            ..EventsRequest::default()
        }
    }
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, args: &EventsArgs) -> Result<(), Failure> {
    if !args.follow {
        return list(context, args).await;
    }
    let mut most = args.limit.map(u64::from);
    let mut from_rev = args.from.unwrap_or_default();
    if args.last.is_some() {
        let through = page_through(context, args.past(), most, |event| print(context, &event)).await?;
        most = most.map(|most| most.saturating_sub(through.count));
        from_rev = through.rev + 1;
    }
    let request = WatchRequest { filters: args.filters(), from_rev, keys_only: args.keys_only };
    follow(context, request, most).await
}

/// Prints what happens, a line each, until that was enough; without a limit, until somebody stops it.
pub(super) async fn follow(context: &Context, request: WatchRequest, most: Option<u64>) -> Result<(), Failure> {
    let mut left = most;
    let mut watch = context.client.watch(request);
    while left != Some(0) {
        let Some(response) = watch.next().await else { break };
        for event in response?.events {
            if left == Some(0) {
                break;
            }
            print(context, &event)?;
            left = left.map(|left| left - 1);
        }
    }
    Ok(())
}

async fn list(context: &Context, args: &EventsArgs) -> Result<(), Failure> {
    let most = u64::from(args.limit.unwrap_or(DEFAULT_LIMIT));
    let mut events = Vec::new();
    let through = page_through(context, args.past(), Some(most), |event| {
        events.push(event);
        Ok(())
    })
    .await?;
    if through.next_rev > 0 {
        context.out.note(&format!("there is more: --from {}, or a larger --limit", through.next_rev));
    }
    context.out.lines(events.iter().map(event_view), || {
        let header = ["rev", "time", "room", "key", "what"];
        table(header, events.iter().map(event_row).collect(), "nothing happened that is still known")
    })
}

/// How far pages went.
#[derive(Debug, Default)]
struct Through {
    count: u64,
    /// Everything up to here was seen, if there is no next page.
    rev: u64,
    /// Where the next page begins; 0 if there is none.
    next_rev: u64,
}

/// Page after page, oldest first, until there were enough. All events of a rev are in one page: there may be some more.
async fn page_through(
    context: &Context,
    mut request: EventsRequest,
    most: Option<u64>,
    mut see: impl FnMut(Event) -> Result<(), Failure>,
) -> Result<Through, Failure> {
    let mut through = Through::default();
    loop {
        let left = most.map_or(u64::from(PAGE), |most| most.saturating_sub(through.count));
        request.limit = u32::try_from(left).unwrap_or(PAGE).clamp(1, PAGE);
        let page = context.client.events(request.clone()).await?;
        // While a page was read, more may have happened, and be in it.
        let newest = page.events.last().map_or(0, |event| event.rev);
        through.rev = through.rev.max(page.rev).max(newest);
        through.next_rev = page.next_rev;
        for event in page.events {
            through.count += 1;
            see(event)?;
        }
        if page.next_rev == 0 || most.is_some_and(|most| through.count >= most) {
            return Ok(through);
        }
        request.from_rev = page.next_rev;
    }
}

fn print(context: &Context, event: &Event) -> Result<(), Failure> {
    context.out.event(|| event_view(event), || event_row(event).join("  "))
}

fn event_view(event: &Event) -> Value {
    json!({
        "rev": event.rev,
        "at_ms": event.at_ms,
        "room": event.room,
        "key": event.key,
        "kind": kind(event),
        "object": Object::of(event).map(|object| object.view),
    })
}

fn event_row(event: &Event) -> [String; 5] {
    let what = Object::of(event).map_or_else(|| kind(event).to_owned(), |object| object.word);
    [event.rev.to_string(), written(event.at_ms, ""), event.room.clone(), event.key.clone(), what]
}

fn kind(event: &Event) -> &'static str {
    match event.kind() {
        EventKind::Put => "put",
        EventKind::Delete => "deleted",
        EventKind::Unspecified => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use prost::Message;
    use quorate_client::v1::{Task, TaskStatus};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: EventsArgs,
    }

    fn parsed(line: &str) -> Option<EventsArgs> {
        let line = ["events"].into_iter().chain(line.split(' ').filter(|word| !word.is_empty()));
        Line::try_parse_from(line).ok().map(|line| line.args)
    }

    #[test]
    fn what_is_asked_for_is_one_filter_or_everything() {
        let args = parsed("--room kv --prefix agents/ -f").unwrap();
        assert!(args.follow && args.filters().len() == 1 && args.filters()[0].prefix == "agents/");
        let args = parsed("--from 7 --to 9 --limit 5 --keys-only").unwrap();
        let past = args.past();
        assert_eq!((past.from_rev, past.to_rev, past.from_ms, past.keys_only), (7, 9, 0, true));
        assert!(past.filters.is_empty(), "everything");
        assert!(parsed("--last 10m").unwrap().past().from_ms > 0);
        for wrong in ["--last 1m --from 7", "--to 9 -f", "--from 0", "--limit 0"] {
            assert!(parsed(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn an_event_says_what_became_of_its_object() {
        let task = Task { id: "t1".into(), status: TaskStatus::Completed as i32, ..Task::default() };
        let mut event = Event {
            rev: 7,
            room: "tasks".into(),
            key: "t1".into(),
            kind: EventKind::Put as i32,
            value: task.encode_to_vec().into(),
            ..Event::default()
        };
        assert_eq!(event_row(&event)[2..], ["tasks", "t1", "completed"]);
        assert_eq!(event_view(&event)["object"]["status"], "completed");
        event.value.clear();
        assert_eq!((event_row(&event)[4].as_str(), &event_view(&event)["object"]), ("put", &Value::Null), "left out");
        event.kind = EventKind::Delete as i32;
        assert_eq!(event_row(&event)[4], "deleted");
    }
}
