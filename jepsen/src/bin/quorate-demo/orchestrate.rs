//! The orchestrator: plans the review of a workspace as one graph of tasks, and accepts the report at the end.
//!
//! Deliberately absent: waiting. The order of the work is in the dependencies; the cluster keeps it.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::job;

/// Plans or accepts, as the payload says.
pub(crate) fn act() -> Result<()> {
    let payload = job::payload()?;
    match job::text(&payload, "step")?.as_str() {
        "plan" => plan(&payload),
        "accept" => accept(&payload),
        other => bail!("payload.step is {other}: neither plan nor accept"),
    }
}

fn plan(payload: &Value) -> Result<()> {
    let (root, report) = (job::text(payload, "root")?, job::text(payload, "report")?);
    let crates = members(Path::new(&root))?;
    let reviews: Vec<String> = crates.iter().map(|name| format!("review-{name}")).collect();
    let mut tasks: Vec<Value> = crates
        .iter()
        .zip(&reviews)
        .map(|(name, id)| {
            json!({
                "task_id": id, "idempotency_key": id, "title": format!("review the crate {name}"),
                "required_capabilities": ["code-review"], "payload": {"root": root, "path": name},
            })
        })
        .collect();
    tasks.push(json!({
        "task_id": "document", "idempotency_key": "document", "title": "write the report",
        "required_capabilities": ["documentation"], "dependencies": reviews,
        "payload": {"report": report, "reviews": reviews},
    }));
    tasks.push(json!({
        "task_id": "accept", "idempotency_key": "accept", "title": "accept the report",
        "required_capabilities": ["orchestration"], "dependencies": ["document"],
        "payload": {"step": "accept", "report": report, "crates": crates},
    }));
    // One file, one call: all of the graph exists or none of it. The keys make a second try of this task harmless.
    let file = tempfile::Builder::new().suffix(".json").tempfile()?;
    std::fs::write(file.path(), json!({"tasks": tasks}).to_string())?;
    let path = file.path().to_str().context("the temporary folder has an unusual name")?;
    job::quorate(&["task", "submit", path])?;
    job::answer(&json!({"submitted": tasks.len(), "crates": crates}))
}

fn accept(payload: &Value) -> Result<()> {
    let report = job::text(payload, "report")?;
    let text = std::fs::read_to_string(&report).with_context(|| format!("no report at {report}"))?;
    for name in job::texts(payload, "crates")? {
        ensure!(text.contains(&format!("| {name} |")), "the report does not mention {name}");
    }
    job::answer(&json!({"accepted": report}))
}

/// The members of the workspace that have a Cargo.toml.
pub(crate) fn members(root: &Path) -> Result<Vec<String>> {
    let path = root.join("Cargo.toml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let list = text.split_once("\nmembers").and_then(|(_, rest)| rest.split_once('[')?.1.split_once(']'));
    let (list, _) = list.with_context(|| format!("no members in {}", path.display()))?;
    let names = list.split(',').map(|name| name.trim().trim_matches('"').to_owned());
    Ok(names.filter(|name| !name.is_empty() && root.join(name).join("Cargo.toml").is_file()).collect())
}
