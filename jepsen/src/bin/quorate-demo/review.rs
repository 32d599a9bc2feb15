//! The reviewer: reads one crate and counts what a reviewer would look at.
//!
//! Deliberately absent: a parser. Lines and the indentation that rustfmt gives are enough for these findings.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::job;

/// Stands for an agent that thinks about a file.
const THINKING: Duration = Duration::from_millis(300);
const LONGEST_SHOWN: usize = 5;

/// One function and its length.
struct Function {
    name: String,
    file: String,
    lines: usize,
}

/// What was found so far.
#[derive(Default)]
struct Findings {
    files: usize,
    lines: usize,
    functions: Vec<Function>,
    todos: usize,
    undocumented: usize,
}

/// Reviews the crate that the task names.
pub(crate) fn act() -> Result<()> {
    let payload = job::payload()?;
    let (root, path) = (job::text(&payload, "root")?, job::text(&payload, "path")?);
    let mut files = Vec::new();
    rust_files(&Path::new(&root).join(&path), &mut files)?;
    files.sort();
    let mut found = Findings::default();
    for file in &files {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let name = file.strip_prefix(&root).unwrap_or(file).display().to_string();
        found.add(&name, &text);
        std::thread::sleep(THINKING);
    }
    found.functions.sort_by(|a, b| b.lines.cmp(&a.lines).then_with(|| a.name.cmp(&b.name)));
    let longest: Vec<_> = found
        .functions
        .iter()
        .take(LONGEST_SHOWN)
        .map(|function| json!({"name": function.name, "file": function.file, "lines": function.lines}))
        .collect();
    job::answer(&json!({
        "path": path, "files": found.files, "lines": found.lines, "longest": longest,
        "todos": found.todos, "undocumented": found.undocumented,
    }))
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() && entry.file_name() != "target" {
            rust_files(&path, files)?;
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

impl Findings {
    fn add(&mut self, file: &str, text: &str) {
        let lines: Vec<&str> = text.lines().collect();
        self.files += 1;
        self.lines += lines.len();
        for (at, line) in lines.iter().enumerate() {
            if let Some((_, comment)) = line.split_once("//")
                && (comment.contains("TODO") || comment.contains("FIXME"))
            {
                self.todos += 1;
            }
            if is_public_item(line) && !is_documented(&lines[..at]) {
                self.undocumented += 1;
            }
            if let Some(name) = function_name(line)
                && let Some(length) = function_length(&lines[at..])
            {
                self.functions.push(Function { name, file: file.to_owned(), lines: length });
            }
        }
    }
}

fn is_public_item(line: &str) -> bool {
    let Some(rest) = line.trim_start().strip_prefix("pub ") else { return false };
    let kinds = ["fn ", "async ", "const ", "static ", "struct ", "enum ", "trait ", "type "];
    kinds.iter().any(|kind| rest.starts_with(kind))
}

fn is_documented(before: &[&str]) -> bool {
    let line = before.iter().rev().map(|line| line.trim_start()).find(|line| !line.starts_with("#["));
    line.is_some_and(|line| line.starts_with("///"))
}

/// The name, if the line begins a function.
fn function_name(line: &str) -> Option<String> {
    let mut rest = line.trim_start();
    for prefix in ["pub(crate) ", "pub(super) ", "pub ", "const ", "async "] {
        rest = rest.strip_prefix(prefix).unwrap_or(rest);
    }
    let name: String = rest.strip_prefix("fn ")?.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

/// From the signature to the brace at its own indentation; `None` for a declaration without a body.
fn function_length(lines: &[&str]) -> Option<usize> {
    let first = lines.first()?;
    let indent = &first[..first.len() - first.trim_start().len()];
    if first.ends_with('}') {
        return Some(1);
    }
    let opens = lines.iter().position(|line| line.ends_with('{') || line.ends_with(';'))?;
    if lines.get(opens)?.ends_with(';') {
        return None;
    }
    let closes = lines.iter().position(|line| line.strip_prefix(indent) == Some("}"))?;
    Some(closes + 1)
}
