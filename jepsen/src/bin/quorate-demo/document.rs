//! The documenter: fetches the results of the reviews through the command line and writes the report.
//!
//! Deliberately absent: judgement. The report shows the findings; the reader judges.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::job;

/// Writes the report that the task names.
pub(crate) fn act() -> Result<()> {
    let payload = job::payload()?;
    let path = job::text(&payload, "report")?;
    let mut reviews = Vec::new();
    for id in job::texts(&payload, "reviews")? {
        let result = job::quorate(&["task", "result", &id])?;
        let review: Value =
            serde_json::from_slice(&result).with_context(|| format!("the result of {id} is not JSON"))?;
        reviews.push(review);
    }
    let text = render(&reviews)?;
    std::fs::write(&path, &text).with_context(|| format!("cannot write {path}"))?;
    job::answer(&json!({"path": path, "bytes": text.len(), "fnv1a": format!("{:016x}", fnv1a(text.as_bytes()))}))
}

fn render(reviews: &[Value]) -> Result<String> {
    let mut text =
        String::from("# Review of this repository\n\nWritten by `quorate-demo`, one reviewer task per crate.\n\n");
    text.push_str(
        "| crate | files | lines | TODO, FIXME | public items without a doc comment |\n|---|---|---|---|---|\n",
    );
    for review in reviews {
        let path = review["path"].as_str().context("a review without a path")?;
        let cells = ["files", "lines", "todos", "undocumented"].map(|field| review[field].to_string());
        writeln!(text, "| {path} | {} |", cells.join(" | "))?;
    }
    text.push_str("\n## Longest functions\n\n| crate | function | file | lines |\n|---|---|---|---|\n");
    for review in reviews {
        for function in review["longest"].as_array().into_iter().flatten() {
            let field = |name: &str| function[name].as_str().unwrap_or_default().to_owned();
            let path = review["path"].as_str().unwrap_or_default();
            writeln!(text, "| {path} | `{}` | {} | {} |", field("name"), field("file"), function["lines"])?;
        }
    }
    Ok(text)
}

/// Tells two reports apart; nothing depends on its strength.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
