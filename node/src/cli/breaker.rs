//! `quorate breaker`: what is broken, since when, and until when nothing is sent there.

use std::time::Duration;

use clap::{Args, Subcommand};
use quorate_client::v1::{Breaker, BreakerForce, BreakerSettings, BreakerState};
use serde_json::{Value, json};

use super::exit::Failure;
use super::output::{age, facts, now_ms, or_dash, short, span, table};
use super::{Context, values};

const LIST_EXAMPLES: &str = "\
EXAMPLES:
  quorate breaker list
      every breaker of which anything was ever said
  quorate breaker list --state open -o json
      what is broken now, for a program";

const SET_EXAMPLES: &str = "\
EXAMPLES:
  quorate breaker set provider:anthropic --failures 3 --open-for 30s
      this one is quicker to open and quicker to try again
  quorate breaker set --probe-timeout 30m --exclude timeout,busy
      every breaker that has no settings of its own
  quorate breaker set agent:a1 --exclude none
      every failure of this agent counts, timeouts too";

/// Stands for an empty list of classes.
const NONE: &str = "none";
/// How many breakers one list shows at most.
const LIST_MAX: usize = 10_000;

/// `quorate breaker …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// List breakers by name
    #[command(after_help = LIST_EXAMPLES)]
    List {
        /// Only those in this state: closed, open, half_open
        #[arg(long, value_name = "STATE", value_parser = state)]
        state: Option<BreakerState>,
    },
    /// Show one breaker and the settings that hold for it
    Status {
        /// The breaker, such as agent:a1 or provider:anthropic
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Open a breaker until it is closed by hand: nothing more is sent there
    Open {
        /// The breaker, such as agent:a1 or provider:anthropic
        #[arg(value_name = "NAME")]
        name: String,
        /// Why, for whoever looks
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Close a breaker at once; its settings stay
    Close {
        /// The breaker, such as agent:a1 or provider:anthropic
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Forget everything about a breaker, its own settings included
    Reset {
        /// The breaker, such as agent:a1 or provider:anthropic
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Change the settings of one breaker, or of all that have none of their own; what is left out stays as it is
    #[command(after_help = SET_EXAMPLES)]
    Set(SetArgs),
}

/// Flags of `quorate breaker set`.
#[derive(Args)]
pub(crate) struct SetArgs {
    /// The breaker; without it, all that have no settings of their own
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Failures in a row that open it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    failures: Option<u32>,
    /// How long it stays open before one call is tried
    #[arg(long, value_name = "DURATION", value_parser = values::positive_duration)]
    open_for: Option<Duration>,
    /// How long that one call may say nothing; longer than the work usually takes
    #[arg(long, value_name = "DURATION", value_parser = values::positive_duration)]
    probe_timeout: Option<Duration>,
    /// Error classes that do not count, in place of those excluded so far; none: all count
    #[arg(long, value_name = "CLASS,..", value_delimiter = ',')]
    exclude: Vec<String>,
}

impl SetArgs {
    fn says_nothing(&self) -> bool {
        let times = self.open_for.or(self.probe_timeout);
        self.failures.is_none() && times.is_none() && self.exclude.is_empty()
    }

    /// The settings to send: what is left out is what holds now. Classes that are left out stay by themselves.
    fn over(&self, now: &BreakerSettings) -> BreakerSettings {
        let excluded_classes: Vec<String> =
            self.exclude.iter().map(|class| class.trim().to_owned()).filter(|class| class != NONE).collect();
        BreakerSettings {
            failure_threshold: self.failures.unwrap_or(now.failure_threshold),
            open_ms: self.open_for.map_or(now.open_ms, values::millis),
            probe_timeout_ms: self.probe_timeout.map_or(now.probe_timeout_ms, values::millis),
            exclude_nothing: !self.exclude.is_empty() && excluded_classes.is_empty(),
            excluded_classes,
        }
    }
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::List { state } => list(context, state).await,
        Command::Status { name } => status(context, &name).await,
        Command::Open { name, reason } => {
            force(context, &name, BreakerForce::Open, reason.as_deref().unwrap_or_default()).await
        }
        Command::Close { name } => force(context, &name, BreakerForce::Close, "").await,
        Command::Reset { name } => force(context, &name, BreakerForce::Reset, "").await,
        Command::Set(args) => set(context, &args).await,
    }
}

async fn list(context: &Context, state: Option<BreakerState>) -> Result<(), Failure> {
    let answer = context.client.breakers().list(state).await?;
    if answer.breakers.len() >= LIST_MAX {
        context.out.note(&format!("only the first {LIST_MAX} are shown; --state shows fewer"));
    }
    let defaults = answer.defaults.unwrap_or_default();
    context.out.show(
        || {
            let breakers: Vec<_> = answer.breakers.iter().map(view).collect();
            json!({ "breakers": breakers, "defaults": settings_view(&defaults), "rev": answer.rev })
        },
        || breaker_table(&answer.breakers),
    )
}

async fn status(context: &Context, name: &str) -> Result<(), Failure> {
    let answer = context.client.breakers().get(name).await?;
    let breaker = answer.breaker.unwrap_or_default();
    let effective = answer.effective.unwrap_or_default();
    context.out.show(
        || json!({ "breaker": view(&breaker), "effective": settings_view(&effective), "rev": answer.rev }),
        || breaker_facts(&breaker, &effective),
    )
}

async fn force(context: &Context, name: &str, force: BreakerForce, reason: &str) -> Result<(), Failure> {
    let answer = context.client.breakers().force(name, force, reason).await?;
    let breaker = answer.breaker.unwrap_or_default();
    context.out.show(
        || json!({ "breaker": view(&breaker), "rev": answer.rev }),
        || match force {
            BreakerForce::Open => format!("{name} is open until it is closed by hand"),
            // A misspelt name is closed too.
            BreakerForce::Close if breaker.changed_at_ms == 0 => {
                format!("{name} is closed; nothing was ever said of it")
            }
            BreakerForce::Reset => format!("{name} is closed, and nothing is known of it any more"),
            BreakerForce::Close | BreakerForce::Unspecified => format!("{name} is {}", state_name(breaker.state)),
        },
    )
}

async fn set(context: &Context, args: &SetArgs) -> Result<(), Failure> {
    if args.says_nothing() {
        let flags = "--failures, --open-for, --probe-timeout, --exclude";
        return Err(Failure::bad_input(format!("breaker set: expected at least one of {flags}")));
    }
    let name = args.name.as_deref().unwrap_or_default();
    if name.is_empty() && args.name.is_some() {
        return Err(Failure::bad_input("breaker set: the name is empty; leave it out for every breaker"));
    }
    let now = settings_now(context, name).await?;
    let answer = context.client.breakers().configure(name, args.over(&now)).await?;
    let settings = answer.settings.unwrap_or_default();
    context.out.show(
        || json!({ "name": args.name, "settings": settings_view(&settings), "rev": answer.rev }),
        || {
            let whose = if name.is_empty() { "every breaker without settings of its own" } else { name };
            format!("{whose}: {}", settings_line(&settings))
        },
    )
}

/// What holds for this breaker, or for all without settings of their own.
async fn settings_now(context: &Context, name: &str) -> Result<BreakerSettings, Failure> {
    let breakers = context.client.breakers();
    if !name.is_empty() {
        match breakers.get(name).await {
            Ok(found) => return Ok(found.effective.unwrap_or_default()),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    // The shortest list that brings the cluster's settings with it.
    Ok(breakers.list(Some(BreakerState::HalfOpen)).await?.defaults.unwrap_or_default())
}

fn state(text: &str) -> Result<BreakerState, String> {
    match text.trim().replace('-', "_").to_ascii_lowercase().as_str() {
        "closed" => Ok(BreakerState::Closed),
        "open" => Ok(BreakerState::Open),
        "half_open" => Ok(BreakerState::HalfOpen),
        _ => Err("expected one of closed, open, half_open".into()),
    }
}

/// A node newer than this program may send a number that has no name here.
pub(super) fn state_name(value: i32) -> String {
    match BreakerState::try_from(value) {
        Ok(known) => known.as_str_name().trim_start_matches("BREAKER_STATE_").to_ascii_lowercase(),
        Err(_) => format!("unknown({value})"),
    }
}

/// A breaker.
pub(super) fn view(breaker: &Breaker) -> Value {
    json!({
        "name": breaker.name,
        "state": state_name(breaker.state),
        "failures": breaker.failures,
        "probe_at_ms": time(breaker.probe_at_ms),
        "probe": breaker.probe.as_ref().map(|probe| {
            json!({ "token": probe.token, "holder": probe.holder, "deadline_ms": time(probe.deadline_ms) })
        }),
        "settings": breaker.settings.as_ref().map(settings_view),
        "last_error": breaker.last_error,
        "changed_at_ms": time(breaker.changed_at_ms),
        "opened_count": breaker.opened_count,
        "successes_total": breaker.successes_total,
        "failures_total": breaker.failures_total,
        "reason": breaker.reason,
    })
}

fn settings_view(settings: &BreakerSettings) -> Value {
    json!({
        "failure_threshold": settings.failure_threshold,
        "open_ms": settings.open_ms,
        "probe_timeout_ms": settings.probe_timeout_ms,
        "excluded_classes": settings.excluded_classes,
    })
}

fn time(ms: u64) -> Value {
    if ms == 0 { Value::Null } else { json!(ms) }
}

fn settings_line(settings: &BreakerSettings) -> String {
    format!(
        "{} failures in a row open it for {}, a probe may take {}, not counted: {}",
        settings.failure_threshold,
        span(settings.open_ms),
        span(settings.probe_timeout_ms),
        excluded(settings),
    )
}

fn excluded(settings: &BreakerSettings) -> String {
    if settings.excluded_classes.is_empty() { NONE.to_owned() } else { settings.excluded_classes.join(", ") }
}

fn breaker_table(breakers: &[Breaker]) -> String {
    let now = now_ms();
    let header = ["name", "state", "failures", "next", "opened", "changed", "reason"];
    let rows = breakers
        .iter()
        .map(|breaker| {
            [
                breaker.name.clone(),
                state_name(breaker.state),
                breaker.failures.to_string(),
                or_dash(&next(breaker, now)),
                breaker.opened_count.to_string(),
                age(breaker.changed_at_ms, now),
                short(&or_dash(why(breaker)), 60),
            ]
        })
        .collect();
    table(header, rows, "no breakers: nothing was ever said of any")
}

/// What was said by hand or by a provider; else, the error that counts.
fn why(breaker: &Breaker) -> &str {
    match breaker.state() {
        _ if !breaker.reason.is_empty() => &breaker.reason,
        BreakerState::Closed if breaker.failures == 0 => "",
        _ => &breaker.last_error,
    }
}

/// What happens next, and when.
fn next(breaker: &Breaker, now_ms: u64) -> String {
    match (breaker.state(), &breaker.probe) {
        (BreakerState::Open, _) if breaker.probe_at_ms == 0 => "closed by hand".to_owned(),
        (BreakerState::Open, _) => format!("probe in {}", span(breaker.probe_at_ms.saturating_sub(now_ms))),
        (BreakerState::HalfOpen, None) => "probe".to_owned(),
        (BreakerState::HalfOpen, Some(probe)) => format!("{} probes", or_dash(&probe.holder)),
        (BreakerState::Closed | BreakerState::Unspecified, _) => String::new(),
    }
}

fn breaker_facts(breaker: &Breaker, effective: &BreakerSettings) -> String {
    let now = now_ms();
    let own = if breaker.settings.is_some() { "its own" } else { "the cluster's" };
    facts(vec![
        ("name", breaker.name.clone()),
        ("state", state_name(breaker.state)),
        ("next", next(breaker, now)),
        ("reason", breaker.reason.clone()),
        ("failures in a row", format!("{} of {}", breaker.failures, effective.failure_threshold)),
        ("last error", breaker.last_error.clone()),
        ("stays open for", span(effective.open_ms)),
        ("probe may take", span(effective.probe_timeout_ms)),
        ("not counted", excluded(effective)),
        ("settings", own.to_owned()),
        ("opened", format!("{} times", breaker.opened_count)),
        ("failures", breaker.failures_total.to_string()),
        ("changed", format!("{} ago", age(breaker.changed_at_ms, now))),
    ])
}

#[cfg(test)]
mod tests {
    use quorate_client::v1::BreakerProbe;

    use super::*;

    fn args() -> SetArgs {
        SetArgs { name: None, failures: None, open_for: None, probe_timeout: None, exclude: Vec::new() }
    }

    #[test]
    fn what_is_left_out_stays_as_it_is() {
        let now = BreakerSettings {
            failure_threshold: 3,
            open_ms: 5,
            probe_timeout_ms: 7,
            excluded_classes: vec!["busy".into()],
            exclude_nothing: false,
        };
        assert!(args().says_nothing());
        let longer = SetArgs { open_for: Some(Duration::from_secs(1)), ..args() };
        let sent = longer.over(&now);
        assert_eq!((sent.failure_threshold, sent.open_ms, sent.probe_timeout_ms), (3, 1_000, 7));
        assert!(sent.excluded_classes.is_empty() && !sent.exclude_nothing, "unset: the cluster keeps them");
        let none = SetArgs { exclude: vec!["none".into()], ..args() }.over(&now);
        assert!(none.excluded_classes.is_empty() && none.exclude_nothing);
        let some = SetArgs { exclude: vec!["busy".into(), " timeout".into()], ..args() }.over(&now);
        assert_eq!((some.excluded_classes.join(","), some.exclude_nothing), ("busy,timeout".to_owned(), false));
    }

    #[test]
    fn states_read_back() {
        for known in [BreakerState::Closed, BreakerState::Open, BreakerState::HalfOpen] {
            assert_eq!(state(&state_name(known as i32)), Ok(known));
        }
        assert_eq!(state("half-open"), Ok(BreakerState::HalfOpen));
        assert!(state("broken").unwrap_err().contains("half_open"));
        assert_eq!(state_name(99), "unknown(99)");
    }

    #[test]
    fn a_breaker_says_what_happens_next() {
        let open = Breaker { state: BreakerState::Open as i32, probe_at_ms: 5_000, ..Breaker::default() };
        assert_eq!(next(&open, 1_000), "probe in 4.0s");
        assert_eq!(next(&Breaker { probe_at_ms: 0, ..open.clone() }, 1_000), "closed by hand");
        let probe = BreakerProbe { token: 1, holder: "t1".into(), deadline_ms: 9 };
        let half = Breaker { state: BreakerState::HalfOpen as i32, probe: Some(probe), ..open };
        assert_eq!(next(&half, 1_000), "t1 probes");
        assert_eq!(view(&half)["state"], "half_open");
        assert_eq!(next(&Breaker::default(), 1_000), "");
    }
}
