//! The verbs of scripts about breakers.
//!
//! ```text
//! acquire_breaker NAME holder=h
//! report_breaker NAME ok | error=e class=c retry_after=ms        probe=token if it was the probe
//! configure_breaker [NAME] failures=n open=ms probe_timeout=ms exclude=a,b nothing=1 | settings=unset
//! force_breaker NAME open|close|reset reason=r
//! breaker NAME    breakers    breaker_admits NAME    breaker_settings [NAME]    breaker_news
//! ```
//!
//! A probe's token is the rev of the command that acquired it: the number of commands up to there, reads left out.

use quorate_proto::log::{answer, command};
use quorate_proto::v1::{
    AcquireBreakerRequest, AcquireBreakerResponse, Breaker, BreakerForce, BreakerSettings, BreakerState,
    ConfigureBreakerRequest, ForceBreakerRequest, ReportBreakerRequest,
};
use quorate_raft::apply::Machine;
use quorate_raft::effect::Effect;
use quorate_raft::state::breakers::Admission;

use super::Line;

/// The command that a line stands for.
pub(crate) fn body(line: &Line<'_>) -> Option<command::Body> {
    use command::Body as B;
    let name = line.id();
    Some(match line.verb {
        "acquire_breaker" => {
            B::AcquireBreaker(AcquireBreakerRequest { name, holder: line.text("holder"), request: None })
        }
        "report_breaker" => B::ReportBreaker(ReportBreakerRequest {
            name,
            success: line.plain.get(1) == Some(&"ok"),
            error: line.text("error"),
            error_class: line.text("class"),
            probe_token: line.number("probe", 0),
            retry_after_ms: line.number("retry_after", 0),
            request: None,
        }),
        "configure_breaker" => {
            B::ConfigureBreaker(ConfigureBreakerRequest { name, settings: settings(line), request: None })
        }
        "force_breaker" => {
            let force = match line.plain.get(1) {
                Some(&"open") => BreakerForce::Open,
                Some(&"close") => BreakerForce::Close,
                Some(&"reset") => BreakerForce::Reset,
                _ => BreakerForce::Unspecified,
            };
            B::ForceBreaker(ForceBreakerRequest {
                name,
                force: force as i32,
                reason: line.text("reason"),
                request: None,
            })
        }
        _ => return None,
    })
}

fn settings(line: &Line<'_>) -> Option<BreakerSettings> {
    let settings = BreakerSettings {
        failure_threshold: line.small("failures", 0),
        open_ms: line.number("open", 0),
        probe_timeout_ms: line.number("probe_timeout", 0),
        excluded_classes: line.list("exclude"),
        exclude_nothing: line.number("nothing", 0) > 0,
    };
    Some(settings).filter(|_| line.text("settings") != "unset")
}

/// How an answer is shown.
pub(crate) fn show(body: &answer::Body) -> Option<String> {
    use answer::Body as B;
    Some(match body {
        B::AcquireBreaker(r) => acquired(r),
        B::ReportBreaker(r) => breaker(r.breaker.as_ref().unwrap()),
        B::ConfigureBreaker(r) => held(r.settings.as_ref().unwrap()),
        B::ForceBreaker(r) => breaker(r.breaker.as_ref().unwrap()),
        _ => return None,
    })
}

/// What a line that is no command reads.
pub(crate) fn read(machine: &Machine, now_ms: u64, line: &Line<'_>) -> Option<String> {
    let breakers = &machine.rooms().breakers;
    let name = line.id();
    Some(match line.verb {
        "breaker" => breakers.get(&name).map_or("none".to_owned(), breaker),
        "breakers" => {
            let all: Vec<String> = breakers.iter().map(|one| format!("{} {}", one.name, state(one.state()))).collect();
            if all.is_empty() { "none".to_owned() } else { all.join(", ") }
        }
        "breaker_settings" => held(&breakers.effective(&name)),
        "breaker_admits" => match breakers.admission(&name, now_ms) {
            Admission::Yes => "yes".to_owned(),
            Admission::Probe => "as the probe".to_owned(),
            Admission::No { retry_at_ms } => format!("no, ask at {retry_at_ms}"),
        },
        "breaker_news" => {
            let told = machine.effects().filter_map(|effect| match effect {
                Effect::BreakerChanged { name, state: to, .. } => Some(format!("{name} {}", state(*to))),
                _ => None,
            });
            let told: Vec<String> = told.collect();
            if told.is_empty() { "no news".to_owned() } else { told.join(", ") }
        }
        _ => return None,
    })
}

fn state(state: BreakerState) -> &'static str {
    let name = state.as_str_name();
    name.strip_prefix("BREAKER_STATE_").unwrap_or(name)
}

fn acquired(r: &AcquireBreakerResponse) -> String {
    let word = if r.allowed { "allowed" } else { "refused" };
    let mut shown = format!("{word} {}", state(r.state()));
    for (name, number) in [("probe", r.probe_token), ("retry_after", r.retry_after_ms)] {
        if number > 0 {
            shown.push_str(&format!(" {name}={number}"));
        }
    }
    if !r.fallback_agent_id.is_empty() {
        shown.push_str(&format!(" fallback={}", r.fallback_agent_id));
    }
    shown
}

fn breaker(breaker: &Breaker) -> String {
    let mut shown = format!("{} {}", breaker.name, state(breaker.state()));
    for (name, number) in [("failures", u64::from(breaker.failures)), ("probe_at", breaker.probe_at_ms)] {
        if number > 0 {
            shown.push_str(&format!(" {name}={number}"));
        }
    }
    if let Some(probe) = &breaker.probe {
        shown.push_str(&format!(" probe={}:{}:{}", probe.token, probe.holder, probe.deadline_ms));
    }
    for (name, number) in
        [("opened", breaker.opened_count), ("ok", breaker.successes_total), ("failed", breaker.failures_total)]
    {
        if number > 0 {
            shown.push_str(&format!(" {name}={number}"));
        }
    }
    for (name, text) in [("error", &breaker.last_error), ("reason", &breaker.reason)] {
        if !text.is_empty() {
            shown.push_str(&format!(" {name}={text:?}"));
        }
    }
    shown
}

fn held(settings: &BreakerSettings) -> String {
    let excluded = if settings.exclude_nothing { "nothing".to_owned() } else { settings.excluded_classes.join(",") };
    format!(
        "failures={} open={} probe_timeout={} exclude={excluded}",
        settings.failure_threshold, settings.open_ms, settings.probe_timeout_ms
    )
}
