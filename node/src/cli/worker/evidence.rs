//! What a command has to show: a file that it writes lines to, sent along when its task is completed.
//!
//! ```text
//!   artifact diff s3://bucket/fix.diff sha256:0a1b 2048
//!   check test 0
//! ```
//!
//! Deliberately absent: looking at what the lines refer to. The task's policy and its reviewers judge that.

use std::io;

use quorate_client::Done;
use quorate_client::v1::{Artifact, CheckResult};
use tempfile::NamedTempFile;
use tokio::io::AsyncReadExt;

const MAX_BYTES: u64 = 64 * 1024;
const EXPECTED: &str = "expected `artifact KIND URI [DIGEST [BYTES]]` or `check NAME EXIT_CODE`";

/// The file of one attempt; it goes when this is dropped.
pub(super) struct Evidence {
    file: NamedTempFile,
}

impl Evidence {
    /// An empty file that only this user can read.
    pub(super) fn begin() -> io::Result<Self> {
        tempfile::Builder::new().prefix("quorate-evidence-").tempfile().map(|file| Self { file })
    }

    /// Where it is.
    pub(super) fn path(&self) -> String {
        self.file.path().to_string_lossy().into_owned()
    }

    /// What was written to it. By its name: the command may have put another file there.
    pub(super) async fn shown(self) -> Result<Shown, String> {
        let mut text = String::new();
        let read = async {
            let file = tokio::fs::File::open(self.file.path()).await?;
            file.take(MAX_BYTES + 1).read_to_string(&mut text).await
        };
        let read = read.await;
        match read {
            Ok(bytes) if bytes as u64 > MAX_BYTES => Err(format!("evidence: more than {MAX_BYTES} bytes")),
            Ok(_) => parse(&text),
            Err(error) => Err(format!("evidence: {error}")),
        }
    }
}

/// What a command says it made and checked.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Shown {
    artifacts: Vec<Artifact>,
    checks: Vec<CheckResult>,
}

impl Shown {
    /// Sends it along.
    pub(super) fn beside(self, done: Done) -> Done {
        let done = self.artifacts.into_iter().fold(done, Done::with_artifact);
        self.checks.into_iter().fold(done, |done, check| done.with_check(check.name, check.exit_code))
    }
}

fn parse(text: &str) -> Result<Shown, String> {
    let mut shown = Shown::default();
    for (at, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let understood = match words.as_slice() {
            [] => Some(()),
            [word, ..] if word.starts_with('#') => Some(()),
            ["artifact", kind, uri, rest @ ..] => {
                artifact(kind, uri, rest).map(|artifact| shown.artifacts.push(artifact))
            }
            ["check", name, code] => check(name, code).map(|check| shown.checks.push(check)),
            _ => None,
        };
        understood.ok_or_else(|| format!("evidence, line {}: {EXPECTED}", at + 1))?;
    }
    Ok(shown)
}

fn artifact(kind: &str, uri: &str, rest: &[&str]) -> Option<Artifact> {
    let (digest, size_bytes) = match rest {
        [] => ("", 0),
        [digest] => (*digest, 0),
        [digest, bytes] => (*digest, bytes.parse().ok()?),
        _ => return None,
    };
    Some(Artifact { kind: kind.to_owned(), uri: uri.to_owned(), digest: digest.to_owned(), size_bytes })
}

fn check(name: &str, code: &str) -> Option<CheckResult> {
    Some(CheckResult { name: name.to_owned(), exit_code: code.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_artifacts_and_checks() {
        let text = "# what came of it\nartifact diff file:///fix.diff sha256:0a 20\n\nartifact log file:///log\ncheck test 0\n";
        let shown = parse(text).unwrap();
        let diff = Artifact {
            kind: "diff".into(),
            uri: "file:///fix.diff".into(),
            digest: "sha256:0a".into(),
            size_bytes: 20,
        };
        let log = Artifact { kind: "log".into(), uri: "file:///log".into(), ..Default::default() };
        let checks = vec![CheckResult { name: "test".into(), exit_code: 0 }];
        assert_eq!(shown, Shown { artifacts: vec![diff, log], checks });
        assert_eq!(parse(""), Ok(Shown::default()));
    }

    #[test]
    fn a_line_that_is_wrong_is_named() {
        let wrong =
            ["artifact diff", "artifact d u x y", "artifact d u x 1 more", "check test", "check test ok", "tests 0"];
        for line in wrong {
            let error = parse(&format!("check test 0\n{line}")).unwrap_err();
            assert!(error.starts_with("evidence, line 2: expected"), "{line}: {error}");
        }
    }

    #[tokio::test]
    async fn what_a_command_writes_is_read_and_too_much_is_refused() {
        let evidence = Evidence::begin().unwrap();
        std::fs::write(evidence.path(), "check test 0\n").unwrap();
        let done = evidence.shown().await.unwrap().beside(Done::completed("ok"));
        assert!(matches!(done, Done::Completed { checks, .. } if checks.len() == 1));
        let evidence = Evidence::begin().unwrap();
        std::fs::write(evidence.path(), "#".repeat(MAX_BYTES as usize + 1)).unwrap();
        assert!(evidence.shown().await.unwrap_err().contains("65536"));
    }
}
