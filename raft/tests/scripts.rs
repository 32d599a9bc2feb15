//! Runs `tests/scripts/<room>/*.txt`: one situation a file, commands and what they answer.
//!
//! A file is a list of blocks: lines of commands, a line `---`, lines of output, an empty line. `@1000` before a command
//! sets the time. `#` starts a comment. With `UPDATE_SCRIPTS=1` the output parts are written anew; read the difference
//! before you keep it. After every command the indexes are compared with those rebuilt from the rows.
//!
//! `token=$last` and `epoch=$last` stand for the newest token of the task, or epoch of the session; `$first` for the
//! oldest. `req=s1/5/3` makes a command a recorded request: session, sequence, done_below. Retries have no jitter here.

// Helpers of a test are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "verbs/backups.rs"]
mod backups;
#[path = "verbs/breakers.rs"]
mod breakers;
#[path = "verbs/bus.rs"]
mod bus;
#[path = "verbs/cluster.rs"]
mod cluster;
#[path = "verbs/dispatch.rs"]
mod dispatch;
#[path = "verbs/kv.rs"]
mod kv;
#[path = "verbs/locks.rs"]
mod locks;
#[path = "verbs/namespaces.rs"]
mod namespaces;
#[path = "verbs/progress.rs"]
mod progress;
#[path = "verbs/retries.rs"]
mod retries;
#[path = "verbs/schedules.rs"]
mod schedules;
#[path = "verbs/tasks.rs"]
mod tasks;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use quorate_proto::log::{Answer, Command, ExpireSession, Tick, answer, command};
use quorate_proto::v1::{
    Agent, AgentFilter, AgentStatus, Attempt, AttemptOutcome, CancelTaskRequest, ClaimTasksRequest,
    CloseSessionRequest, ClusterInfo, DeregisterAgentRequest, DrainAgentRequest, Fence, FenceKind, FinishKind,
    FinishTaskRequest, ListAttemptsRequest, ListTasksRequest, OpenSessionRequest, RegisterAgentRequest, Rejection,
    ReportAgentRequest, RequestId, Spawn, SubmitTasksRequest, Task, TaskStatsResponse,
};
use quorate_raft::apply::Machine;
use quorate_raft::effect::Effect;
use quorate_raft::state::namespaces::Namespaces;

#[test]
fn every_script_answers_as_written() {
    let update = std::env::var_os("UPDATE_SCRIPTS").is_some();
    let files =
        script_files(&Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")).join("tests/scripts"));
    assert!(files.len() >= 25, "only {} scripts found", files.len());
    let mut differing = Vec::new();
    for file in files {
        let written = fs::read_to_string(&file).unwrap();
        let actual = Script::default().run(&written);
        if actual != written && update {
            fs::write(&file, &actual).unwrap();
        } else if actual != written {
            differing.push(format!("{}\n{}", file.display(), differences(&written, &actual)));
        }
    }
    assert!(differing.is_empty(), "scripts differ:\n{}", differing.join("\n"));
}

fn script_files(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(script_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "txt") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The first line that differs is what to look at.
fn differences(written: &str, actual: &str) -> String {
    let pairs = written.lines().zip(actual.lines()).enumerate();
    match pairs.into_iter().find(|(_, (written, actual))| written != actual) {
        Some((i, (written, actual))) => format!("  line {}:\n    written {written}\n    actual  {actual}", i + 1),
        None => format!("  {} lines written, {} actual", written.lines().count(), actual.lines().count()),
    }
}

#[derive(Default)]
struct Script {
    machine: Machine,
    now_ms: u64,
    tokens: BTreeMap<String, Vec<u64>>,
    epochs: BTreeMap<String, Vec<u64>>,
}

/// `verb first second name=value …`
struct Line<'a> {
    verb: &'a str,
    plain: Vec<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
}

impl<'a> Line<'a> {
    fn parse(text: &'a str) -> Self {
        let mut words = text.split_whitespace();
        let verb = words.next().unwrap_or_default();
        let (named, plain): (Vec<&str>, Vec<&str>) = words.partition(|word| word.contains('='));
        let named = named.into_iter().filter_map(|word| word.split_once('=')).collect();
        Line { verb, plain, named }
    }

    fn id(&self) -> String {
        (*self.plain.first().unwrap_or(&"")).to_owned()
    }

    fn text(&self, name: &str) -> String {
        (*self.named.get(name).unwrap_or(&"")).to_owned()
    }

    fn number(&self, name: &str, default: u64) -> u64 {
        self.named.get(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
    }

    fn small(&self, name: &str, default: u32) -> u32 {
        u32::try_from(self.number(name, u64::from(default))).unwrap()
    }

    fn list(&self, name: &str) -> Vec<String> {
        self.text(name).split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
    }

    fn request(&self) -> Option<RequestId> {
        let mut parts = self.named.get("req")?.split('/');
        Some(RequestId {
            session_id: parts.next().unwrap_or_default().to_owned(),
            sequence: parts.next().map_or(0, |part| part.parse().unwrap()),
            done_below: parts.next().map_or(0, |part| part.parse().unwrap()),
        })
    }
}

impl Script {
    /// The script with the output of this run in place of what was written.
    fn run(mut self, written: &str) -> String {
        let mut actual = String::new();
        for block in written.split("\n\n") {
            let commands = block.split("\n---").next().unwrap_or_default().trim_end().trim_start_matches('\n');
            if commands.is_empty() {
                continue;
            }
            if !actual.is_empty() {
                actual.push('\n');
            }
            actual.push_str(commands);
            actual.push('\n');
            let output: String = commands.lines().map(|line| self.line(line)).collect();
            if !output.is_empty() {
                actual.push_str("---\n");
                actual.push_str(&output);
            }
        }
        actual
    }

    fn line(&mut self, text: &str) -> String {
        let mut text = text.split('#').next().unwrap_or_default().trim();
        if let Some(timed) = text.strip_prefix('@') {
            let (now_ms, rest) = timed.split_once(' ').unwrap_or((timed, ""));
            self.now_ms = now_ms.parse().unwrap();
            text = rest.trim();
        }
        if text.is_empty() {
            return String::new();
        }
        let line = Line::parse(text);
        let output = match self.body(text, &line) {
            Some(body) => {
                let (request, namespace) = (line.request(), line.text("ns"));
                let fences = self.fences(&line);
                let answer = self.apply(Command { request, namespace, fences, body: Some(body) });
                self.show_answer(&answer)
            }
            None => self.read(&line),
        };
        format!("{output}\n")
    }

    /// `fence=lock/NAME/TOKEN`, the token as elsewhere.
    fn fences(&self, line: &Line<'_>) -> Vec<Fence> {
        let fence = line.text("fence");
        let mut parts = fence.split('/');
        let kind = match parts.next() {
            Some("lock") => FenceKind::Lock,
            Some("scope") => FenceKind::Scope,
            Some("task") => FenceKind::Task,
            _ => return Vec::new(),
        };
        let name = parts.next().unwrap_or_default().to_owned();
        let token = pick(&self.tokens, &name, parts.next().unwrap_or("$last"));
        vec![Fence { kind: kind as i32, name, token }]
    }

    fn apply(&mut self, command: Command) -> Answer {
        let mut answers = self.machine.apply(self.now_ms, 7, vec![command]).expect("no fatal error");
        for effect in self.machine.effects() {
            if let Effect::Assigned { task_id, token, .. } = effect {
                self.tokens.entry(task_id.clone()).or_default().push(*token);
            }
        }
        let rebuilt = Namespaces::rebuild(&self.machine.rows).expect("rows that can be read");
        assert_eq!(rebuilt, self.machine.namespaces, "the indexes differ from those rebuilt from the rows");
        answers.pop().expect("an answer for each command")
    }

    /// The command a line stands for; `None` if it is a read.
    fn body(&self, text: &str, line: &Line<'_>) -> Option<command::Body> {
        use command::Body as B;
        let id = line.id();
        Some(match line.verb {
            "open" => B::OpenSession(OpenSessionRequest {
                session_id: id,
                ttl_ms: line.number("ttl", 15_000),
                client: line.text("client"),
            }),
            "close" => B::CloseSession(CloseSessionRequest { session_id: id }),
            "expire" => {
                B::ExpireSession(ExpireSession { epoch: pick(&self.epochs, &id, &line.text("epoch")), session_id: id })
            }
            "register" => B::RegisterAgent(RegisterAgentRequest {
                agent_id: id,
                session_id: line.text("session"),
                agent_type: line.text("type"),
                capabilities: line.list("caps"),
                capacity: line.small("capacity", 0),
                ..RegisterAgentRequest::default()
            }),
            "report" => B::ReportAgent(ReportAgentRequest {
                agent_id: id,
                health_permille: line.named.get("health").map(|health| health.parse().unwrap()),
                status: agent_status(&line.text("status")) as i32,
                reason: line.text("reason"),
                request: None,
            }),
            "drain" => B::DrainAgent(DrainAgentRequest { agent_id: id, request: None }),
            "deregister" => B::DeregisterAgent(DeregisterAgentRequest { agent_id: id, request: None }),
            "submit" | "import" => B::SubmitTasks(SubmitTasksRequest {
                tasks: tasks::specs(text),
                admit_cycles: line.verb == "import",
                ..SubmitTasksRequest::default()
            }),
            "spawn" => B::SubmitTasks(SubmitTasksRequest {
                tasks: tasks::specs(text),
                spawn: Some(Spawn {
                    parent_id: line.text("parent"),
                    token: pick(&self.tokens, &line.text("parent"), &line.text("token")),
                    dependents_wait: line.text("join") == "yes",
                }),
                ..SubmitTasksRequest::default()
            }),
            "claim" => B::ClaimTasks(ClaimTasksRequest {
                agent_id: id,
                session_id: line.text("session"),
                max_tasks: line.small("max", 0),
                ..ClaimTasksRequest::default()
            }),
            "finish" => B::FinishTask(self.finish(&id, line)),
            "cancel" => B::CancelTask(CancelTaskRequest {
                task_id: id,
                reason: line.text("reason"),
                only_this: line.plain.contains(&"only"),
                now: line.plain.contains(&"now"),
                request: None,
            }),
            "tick" => B::Tick(Tick {}),
            "describe" => B::DescribeCluster(ClusterInfo {
                cluster_id: id,
                feature_level: line.small("level", 0),
                ..ClusterInfo::default()
            }),
            _ => {
                return [
                    backups::body,
                    breakers::body,
                    bus::body,
                    cluster::body,
                    dispatch::body,
                    kv::body,
                    locks::body,
                    namespaces::body,
                    progress::body,
                    retries::body,
                    schedules::body,
                    tasks::body,
                ]
                .into_iter()
                .find_map(|body| body(line));
            }
        })
    }

    fn finish(&self, task_id: &str, line: &Line<'_>) -> FinishTaskRequest {
        let kind = match line.text("kind").as_str() {
            "" | "completed" => FinishKind::Completed,
            "failed" => FinishKind::Failed,
            "permanent" => FinishKind::FailedPermanently,
            "released" => FinishKind::Released,
            "cancelled" => FinishKind::Cancelled,
            _ => FinishKind::Unspecified,
        };
        let result = match line.number("result_bytes", 0) {
            0 => Bytes::from(line.text("result")),
            size => Bytes::from(vec![b'x'; usize::try_from(size).unwrap()]),
        };
        FinishTaskRequest {
            task_id: task_id.to_owned(),
            token: pick(&self.tokens, task_id, &line.text("token")),
            kind: kind as i32,
            result,
            error: line.text("error"),
            claim_next: line.small("next", 0),
            error_class: line.text("class"),
            retry_after_ms: line.number("retry_after", 0),
            artifacts: tasks::artifacts(line),
            checks: tasks::checks(line),
            verdict: tasks::verdict(&line.text("verdict")) as i32,
            comment: line.text("comment"),
            ..FinishTaskRequest::default()
        }
    }

    fn show_answer(&mut self, answer: &Answer) -> String {
        use answer::Body as B;
        match answer.body.as_ref().expect("a body") {
            B::Rejected(rejection) => show_rejection(rejection),
            B::OpenSession(r) => {
                let session = r.session.as_ref().unwrap();
                self.epochs.entry(session.id.clone()).or_default().push(session.epoch);
                format!("{} open", session.id)
            }
            B::CloseSession(r) => format!("released={}", r.released_tasks),
            B::RegisterAgent(r) => show_agent(r.agent.as_ref().unwrap()),
            B::ReportAgent(r) => show_agent(r.agent.as_ref().unwrap()),
            B::DrainAgent(r) => format!("remaining={}", r.remaining),
            B::DeregisterAgent(r) => format!("released={}", r.released_tasks),
            B::SubmitTasks(r) => {
                let shown = r.tasks.iter().map(|task| {
                    let existed = if task.existed { " existed" } else { "" };
                    format!("{} {}{existed}", task.task_id, short(task.status().as_str_name()))
                });
                shown.collect::<Vec<_>>().join(", ")
            }
            B::ClaimTasks(r) => {
                let granted = self.granted(&r.tasks);
                format!("{granted}{}", if r.draining { " draining" } else { "" })
            }
            B::FinishTask(r) => {
                let mut shown = short(r.status().as_str_name()).to_owned();
                for (said, word) in [(r.fenced, " fenced"), (r.draining, " draining")] {
                    shown.push_str(if said { word } else { "" });
                }
                if r.unblocked > 0 {
                    shown.push_str(&format!(" unblocked={}", r.unblocked));
                }
                if !r.next.is_empty() {
                    shown.push_str(&format!(" next: {}", self.granted(&r.next)));
                }
                shown
            }
            B::CancelTask(r) => {
                let running =
                    r.running.iter().map(|run| format!(" {}@{}:{}", run.task_id, run.agent_id, run.fence_at_ms));
                let running: String = running.collect();
                let reached = if r.reached > 1 { format!(" reached={}", r.reached) } else { String::new() };
                let stopping = if running.is_empty() { String::new() } else { format!(" stopping{running}") };
                format!("{}{reached}{stopping}", self.show_task(r.task.as_ref().unwrap()))
            }
            B::DecideTask(r) => self.show_task(r.task.as_ref().unwrap()),
            B::AddDependencies(r) => self.show_task(r.task.as_ref().unwrap()),
            B::ExpireSession(_) | B::Tick(_) | B::DescribeCluster(_) | B::StandingOrder(_) => "ok".to_owned(),
            other => {
                let shows = [
                    backups::show,
                    breakers::show,
                    bus::show,
                    cluster::show,
                    dispatch::show,
                    kv::show,
                    locks::show,
                    namespaces::show,
                    progress::show,
                    retries::show,
                    schedules::show,
                    tasks::show,
                ];
                shows.into_iter().find_map(|show| show(other)).expect("an answer that a verb can show")
            }
        }
    }

    fn granted(&mut self, tasks: &[Task]) -> String {
        if tasks.is_empty() {
            return "nothing".to_owned();
        }
        let shown = tasks.iter().map(|task| {
            let claim = task.claim.as_ref().expect("a granted task has a claim");
            self.tokens.entry(task.id.clone()).or_default().push(claim.token);
            format!("{} attempt={}", task.id, claim.attempt)
        });
        shown.collect::<Vec<_>>().join(", ")
    }

    fn read(&self, line: &Line<'_>) -> String {
        let (rooms, rows) = (self.machine.rooms(), &self.machine.rows);
        let id = line.id();
        match line.verb {
            "task" => rooms.tasks.get(rows, &id).unwrap().map_or("none".to_owned(), |task| self.show_task(&task)),
            "agent" => rooms.agents.get(&id).map_or("none".to_owned(), show_agent),
            "agents" => {
                let filter = AgentFilter { capabilities: line.list("cap"), ..AgentFilter::default() };
                words(rooms.agents.find(&filter, 100).iter().map(|agent| agent.id.clone()))
            }
            "attempts" => {
                let limit = line.small("limit", 0);
                let mut req =
                    ListAttemptsRequest { task_id: id, agent_id: line.text("agent"), limit, ..Default::default() };
                let mut shown = Vec::new();
                loop {
                    let (page, next) = rooms.tasks.attempts(rows, &req).expect("a page");
                    shown.extend(page.iter().map(show_attempt));
                    if next.is_empty() {
                        break;
                    }
                    req.page_token = next;
                }
                if shown.is_empty() { "none".to_owned() } else { shown.join("\n") }
            }
            "list" => {
                let limit = line.small("limit", 0);
                let mut req = ListTasksRequest { limit, project: line.text("project"), ..Default::default() };
                let mut pages = Vec::new();
                loop {
                    let (page, next) = rooms.tasks.list(rows, &req).expect("a page");
                    pages.push(words(page.into_iter().map(|task| task.id)));
                    if next.is_empty() {
                        break;
                    }
                    req.page_token = next;
                }
                pages.join(" | ")
            }
            "dependents" => words(rooms.tasks.dependents(&id).into_iter()),
            "recent" => words(rooms.tasks.recent_of_agent(rows, &id).unwrap().into_iter()),
            "claimable" => quorate_raft::state::tasks::claimable(rooms, self.machine.head.now_ms, &id).to_string(),
            "sessions" => words(rooms.sessions.iter().map(|session| session.id.clone())),
            "stats" => show_stats(&rooms.tasks.stats()),
            "due" => rooms.next_due_ms().map_or("never".to_owned(), |at_ms| at_ms.to_string()),
            verb => {
                let reads = [
                    backups::read,
                    breakers::read,
                    bus::read,
                    cluster::read,
                    dispatch::read,
                    kv::read,
                    locks::read,
                    namespaces::read,
                    progress::read,
                    retries::read,
                    schedules::read,
                    tasks::read,
                ];
                reads
                    .into_iter()
                    .find_map(|read| read(&self.machine, self.now_ms, line))
                    .unwrap_or_else(|| panic!("no command {verb:?}"))
            }
        }
    }

    fn show_task(&self, task: &Task) -> String {
        let mut shown = format!("{} {}", task.id, short(task.status().as_str_name()));
        for (name, number) in [
            ("attempts", u64::from(task.attempts)),
            ("failures", u64::from(task.failures)),
            ("ready_at", task.ready_at_ms),
        ] {
            if number > 0 {
                shown.push_str(&format!(" {name}={number}"));
            }
        }
        if let Some(claim) = &task.claim {
            shown.push_str(&format!(" agent={}", claim.agent_id));
        }
        if let Some(notice) = &task.cancel {
            shown.push_str(&format!(" stop_by={}", notice.fence_at_ms));
        }
        for (name, text) in [("type", task.spec.as_ref().map_or("", |spec| &spec.agent_type)), ("by", &task.routed_by)]
        {
            if !text.is_empty() {
                shown.push_str(&format!(" {name}={text}"));
            }
        }
        if task.reworks > 0 {
            shown.push_str(&format!(" reworks={} feedback={:?}", task.reworks, task.feedback));
        }
        for review in &task.reviews {
            let verdict = if review.accepted { "+" } else { "-" };
            shown.push_str(&format!(" {verdict}{}", review.reviewer));
        }
        let open = self.machine.rooms().tasks.open_dependencies(task);
        if !open.is_empty() {
            shown.push_str(&format!(" waits_for={}", open.join(",")));
        }
        if !task.result.is_empty() {
            shown.push_str(&format!(" result={}", String::from_utf8_lossy(&task.result)));
        }
        if !task.error.is_empty() {
            shown.push_str(&format!(" error={:?}", task.error));
        }
        shown
    }
}

/// A number that a script names as `$last`, `$first` or itself.
fn pick(known: &BTreeMap<String, Vec<u64>>, id: &str, named: &str) -> u64 {
    let of_id = known.get(id);
    match named {
        "" | "$last" => of_id.and_then(|all| all.last()).copied().unwrap_or_default(),
        "$first" => of_id.and_then(|all| all.first()).copied().unwrap_or_default(),
        number => number.parse().unwrap(),
    }
}

fn agent_status(name: &str) -> AgentStatus {
    match name {
        "" => AgentStatus::Unspecified,
        name => AgentStatus::from_str_name(&format!("AGENT_STATUS_{name}")).expect("a status"),
    }
}

/// The last part of an enum's name: `TASK_STATUS_READY` is `READY`.
fn short(name: &str) -> &str {
    ["TASK_STATUS_", "AGENT_STATUS_", "ATTEMPT_OUTCOME_", "FINISH_KIND_", "REJECTION_CODE_"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
        .unwrap_or(name)
}

fn words(all: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = all.collect();
    if all.is_empty() { "none".to_owned() } else { all.join(" ") }
}

fn show_rejection(rejection: &Rejection) -> String {
    format!("! {} {}: {}", short(rejection.code().as_str_name()), rejection.field, rejection.message)
}

fn show_agent(agent: &Agent) -> String {
    let status = short(agent.status().as_str_name());
    let mut shown = format!("{} {status} {}/{} revision={}", agent.id, agent.load, agent.capacity, agent.revision);
    for (name, number) in [("restarts", u64::from(agent.restarts)), ("forget_at", agent.forget_at_ms)] {
        if number > 0 {
            shown.push_str(&format!(" {name}={number}"));
        }
    }
    if !agent.reason.is_empty() {
        shown.push_str(&format!(" reason={:?}", agent.reason));
    }
    shown
}

fn show_attempt(attempt: &Attempt) -> String {
    let outcome: AttemptOutcome = attempt.outcome();
    let mut shown =
        format!("{}.{} {} {}", attempt.task_id, attempt.number, short(outcome.as_str_name()), attempt.agent_id);
    if !attempt.error.is_empty() {
        shown.push_str(&format!(" error={:?}", attempt.error));
    }
    if attempt.cancel_acknowledged {
        shown.push_str(" acknowledged");
    }
    if let Some(orphan) = &attempt.orphan {
        let result = String::from_utf8_lossy(&orphan.result);
        shown.push_str(&format!(" orphan={}:{result}", short(orphan.kind().as_str_name())));
    }
    shown
}

fn show_stats(stats: &TaskStatsResponse) -> String {
    let counts = [
        ("pending", stats.pending),
        ("ready", stats.ready),
        ("blocked", stats.blocked),
        ("in_progress", stats.in_progress),
        ("completed", stats.completed),
        ("failed", stats.failed),
        ("timed_out", stats.timed_out),
        ("cancelled", stats.cancelled),
        ("reported", stats.reported),
        ("skipped", stats.skipped),
    ];
    let mut shown: Vec<String> = counts.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name}={n}")).collect();
    for queue in &stats.queues {
        let pin = if queue.agent_id.is_empty() { String::new() } else { format!("@{}", queue.agent_id) };
        let mut set = queue.required_capabilities.join("+");
        for (name, text) in
            [("type", &queue.agent_type), ("keys", &queue.concurrency_keys.join("+")), ("share", &queue.share)]
        {
            if !text.is_empty() {
                set.push_str(&format!(" {name}={text}"));
            }
        }
        shown.push(format!(
            "[{set}{pin}]={} top={} since={}",
            queue.ready, queue.highest_priority, queue.oldest_created_at_ms
        ));
    }
    words(shown.into_iter())
}
