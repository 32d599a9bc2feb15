//! What the end of a command means for its task, and the words for it.

use std::process::ExitStatus;

use quorate_client::{Done, Output};

use super::{MAX_RESULT_BYTES, MAX_TAIL_BYTES};
use crate::cli::exec::{End, Ran};
use crate::cli::output::short;
use crate::cli::values::is_id;

/// EX_TEMPFAIL of sysexits.h.
const EXIT_RELEASED: i32 = 75;
/// EX_DATAERR of sysexits.h.
const EXIT_FAILED_PERMANENTLY: i32 = 65;
/// Of a review.
const EXIT_REWORK: i32 = 1;
/// Of a reviewer's comment.
const MAX_COMMENT_CHARS: usize = 4_000;

/// What an exit code depends on.
pub(super) struct Rules<'a> {
    pub(super) is_review: bool,
    /// Exit codes that are failures of a class.
    pub(super) classes: &'a [(i32, String)],
    /// Why the job was told to stop, if it was.
    pub(super) reason: Option<String>,
}

/// `28=timeout`
pub(super) fn class_of_exit(text: &str) -> Result<(i32, String), String> {
    let parsed = text.trim().split_once('=').and_then(|(code, class)| {
        let code = code.parse::<i32>().ok().filter(|code| (1..=255).contains(code))?;
        is_id(class).then(|| (code, class.to_owned()))
    });
    parsed.ok_or_else(|| {
        "expected an exit code from 1 to 255 and a class of 1 to 128 letters, digits or . _ - : / @, such as 28=timeout"
            .into()
    })
}

impl Rules<'_> {
    /// What became of the task.
    pub(super) fn judge(&self, ran: Ran) -> (Done, String) {
        match ran.end {
            End::Cancelled => (Done::Cancelled, self.stopped()),
            End::TooMuchOutput => {
                let error = format!("stdout is more than {MAX_RESULT_BYTES} bytes, the most that a result may have");
                let (done, how) = failed_permanently(error);
                (done.with_output(output(None, &ran.stdout, ran.stderr)), how)
            }
            End::Exited(status) => self.exited(status, ran.stdout, ran.stderr),
        }
    }

    fn stopped(&self) -> String {
        match self.reason.as_deref() {
            None | Some("") => "stopped".into(),
            Some(reason) => format!("stopped ({})", short(reason, 200)),
        }
    }

    fn exited(&self, status: ExitStatus, stdout: Vec<u8>, stderr: Vec<u8>) -> (Done, String) {
        let error_line = last_line(&stderr);
        let code = status.code();
        if code == Some(0) || (self.is_review && code == Some(EXIT_REWORK)) {
            return self.finished(code, stdout, stderr);
        }
        let error = reason(status, &error_line);
        let class = self.classes.iter().find(|(known, _)| Some(*known) == code).map(|(_, class)| class);
        let (done, how) = match (code, class) {
            (_, Some(class)) => {
                let (done, how) = failed(error);
                (done.class(class), format!("{how}, class {class}"))
            }
            (Some(EXIT_RELEASED), None) => (Done::Released, format!("released ({error})")),
            (Some(EXIT_FAILED_PERMANENTLY), None) => failed_permanently(error),
            (_, None) => failed(error),
        };
        (done.with_output(output(code, &stdout, stderr)), how)
    }

    /// Completed; for a review with its verdict.
    fn finished(&self, code: Option<i32>, stdout: Vec<u8>, stderr: Vec<u8>) -> (Done, String) {
        let (done, how) = if !self.is_review {
            (Done::completed(stdout), "completed")
        } else if code == Some(EXIT_REWORK) {
            (Done::rework(demand(&stdout, &stderr)), "reviewed: rework")
        } else {
            (Done::accept(comment(&stdout)), "reviewed: accepted")
        };
        // The result or the comment is the whole of stdout: no need to keep its tail beside it.
        (done.with_output(output(code, &[], stderr)), how.into())
    }
}

/// It may be tried again.
pub(super) fn failed(error: String) -> (Done, String) {
    let how = format!("failed ({error})");
    (Done::failed(error), how)
}

/// It will never work.
pub(super) fn failed_permanently(error: String) -> (Done, String) {
    let how = format!("failed permanently ({error})");
    (Done::failed_permanently(error), how)
}

fn comment(stdout: &[u8]) -> String {
    short(String::from_utf8_lossy(stdout).trim(), MAX_COMMENT_CHARS)
}

/// What has to change: whoever sent work back for no stated reason at least tried to say something.
fn demand(stdout: &[u8], stderr: &[u8]) -> String {
    let said = [comment(stdout), last_line(stderr)];
    said.into_iter().find(|text| !text.is_empty()).unwrap_or_else(|| "the reviewer gave no reason".into())
}

fn output(exit_code: Option<i32>, stdout: &[u8], stderr: Vec<u8>) -> Output {
    let tail = &stdout[stdout.len().saturating_sub(MAX_TAIL_BYTES)..];
    Output { exit_code, stdout: tail.to_vec().into(), stderr: stderr.into() }
}

/// `exit code 3: cannot open the file`
fn reason(status: ExitStatus, error_line: &str) -> String {
    use std::os::unix::process::ExitStatusExt;
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended in an unknown way".into(),
    };
    if error_line.is_empty() { how } else { format!("{how}: {error_line}") }
}

/// The last line of stderr that says anything.
fn last_line(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    short(text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default(), 300)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use quorate_client::v1::Verdict;

    use super::*;

    const PLAIN: Rules<'_> = Rules { is_review: false, classes: &[], reason: None };
    const REVIEW: Rules<'_> = Rules { is_review: true, classes: &[], reason: None };

    fn ran(raw_status: i32) -> Ran {
        Ran {
            end: End::Exited(ExitStatus::from_raw(raw_status)),
            stdout: b"out".to_vec(),
            stderr: b"first\nlast\n\n".to_vec(),
        }
    }

    #[test]
    fn exit_codes_decide() {
        assert!(matches!(PLAIN.judge(ran(0)).0, Done::Completed { result, .. } if result.as_ref() == b"out"));
        assert!(matches!(PLAIN.judge(ran(75 << 8)).0, Done::Released));
        assert!(matches!(PLAIN.judge(ran(65 << 8)).0, Done::FailedPermanently { .. }));
        let (done, how) = PLAIN.judge(ran(3 << 8));
        assert_eq!(how, "failed (exit code 3: last)");
        let Done::Failed { error, output, class, .. } = done else { panic!("it must be retried") };
        assert_eq!((error.as_str(), output.exit_code, class.as_str()), ("exit code 3: last", Some(3), ""));
        assert_eq!(output.stdout.as_ref(), b"out");
        let (done, how) = PLAIN.judge(ran(9));
        assert!(matches!(done, Done::Failed { output, .. } if output.exit_code.is_none()));
        assert_eq!(how, "failed (killed by signal 9: last)");
    }

    #[test]
    fn a_code_with_a_class_means_that_and_nothing_else() {
        let classes = [(75, "busy".to_owned())];
        let (done, how) = Rules { classes: &classes, ..PLAIN }.judge(ran(75 << 8));
        assert!(matches!(done, Done::Failed { class, .. } if class == "busy"));
        assert_eq!(how, "failed (exit code 75: last), class busy");
        assert_eq!(class_of_exit("28=timeout"), Ok((28, "timeout".into())));
        for wrong in ["28", "0=fine", "256=x", "x=busy", "28=", "28=two words", "28=a=b", ""] {
            assert!(class_of_exit(wrong).unwrap_err().contains("28=timeout"), "{wrong}");
        }
    }

    #[test]
    fn a_review_says_its_verdict_by_exit_code() {
        let verdict = |done| match done {
            Done::Completed { verdict, comment, .. } => (verdict, comment),
            other => panic!("{other:?}"),
        };
        assert_eq!(verdict(REVIEW.judge(ran(0)).0), (Verdict::Accept, "out".into()));
        assert_eq!(verdict(REVIEW.judge(ran(1 << 8)).0), (Verdict::Rework, "out".into()));
        let silent = Ran { stdout: Vec::new(), ..ran(1 << 8) };
        assert_eq!(verdict(REVIEW.judge(silent).0), (Verdict::Rework, "last".into()));
        assert!(matches!(REVIEW.judge(ran(2 << 8)).0, Done::Failed { .. }));
        assert!(matches!(PLAIN.judge(ran(1 << 8)).0, Done::Failed { .. }));
    }

    #[test]
    fn too_much_output_is_never_retried() {
        let (done, how) = PLAIN.judge(Ran { end: End::TooMuchOutput, ..ran(0) });
        assert!(matches!(done, Done::FailedPermanently { .. }));
        assert!(how.contains("1048576 bytes"), "{how}");
    }

    #[test]
    fn a_cancel_is_acknowledged() {
        let rules = Rules { reason: Some("the customer left".into()), ..PLAIN };
        let (done, how) = rules.judge(Ran { end: End::Cancelled, ..ran(0) });
        assert!(matches!(done, Done::Cancelled));
        assert_eq!(how, "stopped (the customer left)");
    }
}
