//! The verbs of scripts about tasks that need no token, and how a task is written in a script.
//!
//! ```text
//! submit t1 caps=rust deps=a,b soft=c pending=d onfail=skip|cascade keys=k uses=b share=s cost=2 type=t not=a1 …  + t2 …
//! import …    the same, circles admitted        spawn parent=t1 join=yes + c1 key=k1 …
//! decide t1 accept|rework by=ann comment=…      depend t1 on=a,b      redrive t1,t2      purge t1,t2
//! deadlocks      resolve      why t1      stand a1 session=s1      pushed      children t1      dead
//! forget t1,t2 ended=5000 dead=1000      old after=t1 limit=100 ended=5000 dead=1000
//! ```

use bytes::Bytes;
use quorate_proto::log::{ForgetTasks, StandingOrder, answer, command};
use quorate_proto::v1::{
    AddDependenciesRequest, Artifact, CheckResult, Deadlock, DecideTaskRequest, EvidencePolicy, KeyValue,
    ListTasksRequest, OnDependencyFailure, PurgeTasksRequest, RedriveTasksRequest, ResolveDeadlocksRequest,
    RetryPolicy, TaskSpec, TaskStatus, Unroutable, Verdict,
};
use quorate_raft::apply::Machine;
use quorate_raft::effect::Effect;
use quorate_raft::state::tasks;

use super::Line;

/// The command that a line stands for.
pub(crate) fn body(line: &Line<'_>) -> Option<command::Body> {
    use command::Body as B;
    let id = line.id();
    Some(match line.verb {
        "decide" => B::DecideTask(DecideTaskRequest {
            task_id: id,
            verdict: verdict(line.plain.get(1).copied().unwrap_or_default()) as i32,
            reviewer: line.text("by"),
            comment: line.text("comment"),
            request: None,
        }),
        "depend" => {
            B::AddDependencies(AddDependenciesRequest { task_id: id, dependencies: line.list("on"), request: None })
        }
        "redrive" => B::RedriveTasks(RedriveTasksRequest { task_ids: ids(&id), request: None }),
        "purge" => B::PurgeTasks(PurgeTasksRequest { task_ids: ids(&id), request: None }),
        "forget" => B::ForgetTasks(ForgetTasks {
            ended_before_ms: line.number("ended", 0),
            dead_before_ms: line.number("dead", 0),
            task_ids: ids(&id),
        }),
        "stand" => B::StandingOrder(StandingOrder { agent_id: id, session_id: line.text("session") }),
        // resolve a,b,c victim=c: the circle as somebody found it.
        "resolve" => B::ResolveDeadlocks(ResolveDeadlocksRequest {
            deadlocks: vec![Deadlock { task_ids: ids(&id), victim: line.text("victim") }],
            request: None,
        }),
        _ => return None,
    })
}

/// How an answer is shown.
pub(crate) fn show(body: &answer::Body) -> Option<String> {
    use answer::Body as B;
    Some(match body {
        B::RedriveTasks(r) => format!("redriven={}", r.redriven),
        B::PurgeTasks(r) => format!("purged={}", r.purged),
        B::ForgetTasks(r) => format!("forgotten={}", r.tasks),
        B::ResolveDeadlocks(r) => format!("resolved={}", r.resolved.len()),
        _ => return None,
    })
}

/// What a line asks of the state.
pub(crate) fn read(machine: &Machine, _now_ms: u64, line: &Line<'_>) -> Option<String> {
    let (rooms, rows) = (machine.rooms(), &machine.rows);
    let id = line.id();
    Some(match line.verb {
        "deadlocks" => {
            let found = rooms.tasks.deadlocks(rows).expect("rows that can be read");
            joined(found.iter().map(|d| format!("{} victim={}", d.task_ids.join(" -> "), d.victim)), "\n")
        }
        "why" => {
            let found = tasks::why(rooms, rows, machine.head.now_ms, &id).expect("rows that can be read");
            let reasons = found.map(|(_, reasons)| reasons).unwrap_or_default();
            joined(reasons.iter().map(|reason| format!("{}: {}", reason.code, reason.message)), "\n")
        }
        "pushed" => {
            let told = machine.effects().filter_map(|effect| match effect {
                Effect::Assigned { agent_id, task_id, .. } => Some(format!("{task_id}>{agent_id}")),
                Effect::Revoked { agent_id, task_id, grace_ms, .. } => {
                    Some(format!("{task_id}<{agent_id} grace={grace_ms}"))
                }
                _ => None,
            });
            joined(told, " ")
        }
        "children" => listed(machine, ListTasksRequest { parent_id: id, ..ListTasksRequest::default() }),
        "dead" => {
            let statuses = vec![TaskStatus::Failed as i32, TaskStatus::TimedOut as i32];
            listed(machine, ListTasksRequest { statuses, ..ListTasksRequest::default() })
        }
        "old" => {
            let cutoffs =
                tasks::Cutoffs { ended_before_ms: line.number("ended", 0), dead_before_ms: line.number("dead", 0) };
            let after = line.named.get("after").copied();
            let limit = usize::try_from(line.number("limit", 100)).unwrap();
            let (found, next) = tasks::ended_before(rows, after, limit, cutoffs).expect("rows that can be read");
            let next = next.map_or_else(String::new, |next| format!(" next={next}"));
            format!("{}{next}", joined(found.into_iter(), " "))
        }
        "rows" => rows.0.len().to_string(),
        _ => return None,
    })
}

fn listed(machine: &Machine, req: ListTasksRequest) -> String {
    let (tasks, _) = machine.rooms().tasks.list(&machine.rows, &req).expect("a page");
    joined(tasks.into_iter().map(|task| task.id), " ")
}

fn joined(all: impl Iterator<Item = String>, between: &str) -> String {
    let all: Vec<String> = all.collect();
    if all.is_empty() { "none".to_owned() } else { all.join(between) }
}

fn ids(named: &str) -> Vec<String> {
    named.split(',').filter(|id| !id.is_empty()).map(str::to_owned).collect()
}

pub(crate) fn verdict(word: &str) -> Verdict {
    match word {
        "accept" => Verdict::Accept,
        "rework" => Verdict::Rework,
        _ => Verdict::Unspecified,
    }
}

/// `artifacts=diff,report`
pub(crate) fn artifacts(line: &Line<'_>) -> Vec<Artifact> {
    let of = |kind: String| Artifact { uri: format!("file:{kind}"), kind, ..Artifact::default() };
    line.list("artifacts").into_iter().map(of).collect()
}

/// `checks=tests:0,lint:1`
pub(crate) fn checks(line: &Line<'_>) -> Vec<CheckResult> {
    let of = |check: String| {
        let (name, code) = check.split_once(':').expect("name:code");
        CheckResult { name: name.to_owned(), exit_code: code.parse().expect("a code") }
    };
    line.list("checks").into_iter().map(of).collect()
}

/// `submit t1 caps=rust + t2 deps=t1`; with `spawn` and its own words the tasks begin after the first ` + `.
pub(crate) fn specs(text: &str) -> Vec<TaskSpec> {
    let specs = match text.split_once(' ') {
        Some(("spawn", rest)) => rest.split_once(" + ").map_or("", |(_, specs)| specs),
        Some((_, specs)) => specs,
        None => "",
    };
    if specs.split_whitespace().all(|word| word.starts_with("req=")) {
        return Vec::new();
    }
    specs.split(" + ").map(|spec| task_spec(&Line::parse(&format!("spec {spec}")))).collect()
}

fn task_spec(line: &Line<'_>) -> TaskSpec {
    let profile = line.text("profile");
    let retry = RetryPolicy {
        max_retries: line.small("retries", 3),
        base_ms: line.number("base", 0),
        cap_ms: line.number("cap", 0),
        jitter_permille: line.small("jitter", 0),
        never_retry: line.list("never"),
        always_retry: line.list("always"),
    };
    let title = match line.number("title_bytes", 0) {
        0 => line.text("title").replace('_', " "),
        size => "x".repeat(usize::try_from(size).unwrap()),
    };
    TaskSpec {
        task_id: line.id(),
        title,
        payload: Bytes::from(vec![0; usize::try_from(line.number("payload_bytes", 0)).unwrap()]),
        required_capabilities: line.list("caps"),
        agent_id: line.text("agent"),
        priority: line.named.contains_key("prio").then(|| line.small("prio", 0)),
        dependencies: line.list("deps"),
        retry: profile.is_empty().then_some(retry),
        retry_profile: profile,
        attempt_timeout_ms: line.number("timeout", 0),
        not_before_ms: line.number("at", 0),
        unroutable: if line.text("unroutable") == "fail" { Unroutable::Fail } else { Unroutable::Wait } as i32,
        project: line.text("project"),
        epic: line.text("epic"),
        feature: line.text("feature"),
        idempotency_key: line.text("key"),
        agent_type: line.text("type"),
        required_labels: line.list("labels").iter().map(|label| key_value(label)).collect(),
        excluded_agents: line.list("not"),
        route: line.plain.contains(&"route"),
        concurrency_keys: line.list("keys"),
        uses: line.list("uses"),
        share: line.text("share"),
        cost: line.number("cost", 0),
        soft_dependencies: line.list("soft"),
        pending_dependencies: line.list("pending"),
        on_dependency_failure: match line.text("onfail").as_str() {
            "skip" => OnDependencyFailure::Skip,
            "cascade" => OnDependencyFailure::Cascade,
            _ => OnDependencyFailure::Unspecified,
        } as i32,
        queue_timeout_ms: line.number("qtimeout", 0),
        total_timeout_ms: line.number("total", 0),
        cancel_grace_ms: line.named.contains_key("grace").then(|| line.number("grace", 0)),
        evidence: evidence(line),
        ..TaskSpec::default()
    }
}

fn evidence(line: &Line<'_>) -> Option<EvidencePolicy> {
    let policy = EvidencePolicy {
        artifacts: line.list("needs"),
        checks: line.list("checked"),
        agent_reviews: line.small("reviews", 0),
        review_capabilities: line.list("reviewers"),
        person_reviews: line.small("people", 0),
        max_reworks: line.named.contains_key("reworks").then(|| line.small("reworks", 0)),
    };
    (policy != EvidencePolicy::default()).then_some(policy)
}

fn key_value(label: &str) -> KeyValue {
    let (key, value) = label.split_once(':').expect("key:value");
    KeyValue { key: key.to_owned(), value: value.to_owned() }
}
