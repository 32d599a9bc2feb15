//! Lines about retry profiles.
//!
//! `retry_set NAME max= base= cap= jitter= never=a,b always=a,b`, `retry_delete NAME`; reads: `retry NAME`, `retries`.
//! `retry_set NAME nothing` gives no policy.

use quorate_proto::log::{answer, command};
use quorate_proto::v1::{DeleteRetryProfileRequest, RetryPolicy, RetryProfile, SetRetryProfileRequest};
use quorate_raft::apply::Machine;

use super::Line;

pub(crate) fn body(line: &Line<'_>) -> Option<command::Body> {
    use command::Body as B;
    match line.verb {
        "retry_set" => {
            let policy = (!line.plain.contains(&"nothing")).then(|| policy(line));
            Some(B::SetRetryProfile(SetRetryProfileRequest { name: line.id(), policy, request: None }))
        }
        "retry_delete" => Some(B::DeleteRetryProfile(DeleteRetryProfileRequest { name: line.id(), request: None })),
        _ => None,
    }
}

fn policy(line: &Line<'_>) -> RetryPolicy {
    RetryPolicy {
        max_retries: line.small("max", 0),
        base_ms: line.number("base", 0),
        cap_ms: line.number("cap", 0),
        jitter_permille: line.small("jitter", 0),
        never_retry: line.list("never"),
        always_retry: line.list("always"),
    }
}

pub(crate) fn show(body: &answer::Body) -> Option<String> {
    use answer::Body as B;
    match body {
        B::SetRetryProfile(r) => r.profile.as_ref().map(show_profile),
        B::DeleteRetryProfile(_) => Some("deleted".to_owned()),
        _ => None,
    }
}

pub(crate) fn read(machine: &Machine, _now_ms: u64, line: &Line<'_>) -> Option<String> {
    let retries = &machine.rooms().retries;
    match line.verb {
        "retry" => Some(retries.get(&line.id()).map_or("none".to_owned(), |policy| show_policy(&policy))),
        "retries" => Some(retries.list().iter().map(show_profile).collect::<Vec<_>>().join("\n")),
        _ => None,
    }
}

fn show_profile(profile: &RetryProfile) -> String {
    let built_in = if profile.built_in { " built_in" } else { "" };
    let policy = profile.policy.as_ref().map_or("no policy".to_owned(), show_policy);
    format!("{} {policy}{built_in}", profile.name)
}

fn show_policy(policy: &RetryPolicy) -> String {
    let RetryPolicy { max_retries, base_ms, cap_ms, jitter_permille, never_retry, always_retry } = policy;
    let mut shown = format!("max={max_retries} base={base_ms} cap={cap_ms} jitter={jitter_permille}");
    for (name, classes) in [("never", never_retry), ("always", always_retry)] {
        if !classes.is_empty() {
            shown.push_str(&format!(" {name}={}", classes.join(",")));
        }
    }
    shown
}
