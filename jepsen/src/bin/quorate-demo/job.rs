//! What every agent of the demo needs: its task from stdin, its result to stdout, the `quorate` command line.
//!
//! Deliberately absent: the client library. An agent here is any program that a worker can execute.

use std::io::{Read, Write};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The payload of the task on stdin. A payload that arrives as text is parsed as JSON.
pub(crate) fn payload() -> Result<Value> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let task: Value = serde_json::from_str(&text).context("stdin is not a task as JSON")?;
    let payload = task.get("payload").or_else(|| task.get("spec").and_then(|spec| spec.get("payload")));
    match payload {
        Some(Value::String(inner)) => serde_json::from_str(inner).context("the payload is not JSON"),
        Some(value) => Ok(value.clone()),
        None => bail!("the task has no payload"),
    }
}

/// A text field of a payload.
pub(crate) fn text(payload: &Value, field: &str) -> Result<String> {
    let value = payload.get(field).and_then(Value::as_str);
    value.map(str::to_owned).with_context(|| format!("payload.{field} is not a text"))
}

/// A field of a payload that lists texts.
pub(crate) fn texts(payload: &Value, field: &str) -> Result<Vec<String>> {
    let list =
        payload.get(field).and_then(Value::as_array).with_context(|| format!("payload.{field} is not a list"))?;
    Ok(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// Prints the result of the task.
pub(crate) fn answer(result: &Value) -> Result<()> {
    writeln!(std::io::stdout(), "{result}")?;
    Ok(())
}

/// Runs the command line named by `QUORATE_BIN`; it finds the cluster through `QUORATE_ENDPOINTS`.
pub(crate) fn quorate(args: &[&str]) -> Result<Vec<u8>> {
    let binary = std::env::var_os("QUORATE_BIN").context("QUORATE_BIN is not set")?;
    let output = Command::new(binary).args(args).output()?;
    if !output.status.success() {
        bail!("quorate {} ended with {}: {}", args.join(" "), output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}
