//! What became of a job, in its handler's words.

use std::time::Duration;

use bytes::Bytes;
use quorate_proto::v1::{Artifact, CheckResult, Verdict};

/// The class of a failure for which a provider said when to come again.
const RATE_LIMITED: &str = "rate_limited";

/// What an attempt left behind besides its result. Tails of 64 KiB are kept.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// Of the process, if there was one.
    pub exit_code: Option<i32>,
    /// What it printed.
    pub stdout: Bytes,
    /// What it complained about.
    pub stderr: Bytes,
}

/// What became of a job.
///
/// ```
/// # use quorate_client::Done;
/// # use std::time::Duration;
/// let done = Done::completed("all green").with_check("cargo test", 0);
/// let failed = Done::failed("the model took too long").class("timeout");
/// let refused = Done::rate_limited("429 from the provider", Duration::from_secs(20));
/// let review = Done::rework("the second paragraph contradicts the first");
/// ```
#[derive(Debug, Clone)]
pub enum Done {
    /// It is done, with this result.
    Completed {
        /// At most 1 MiB.
        result: Bytes,
        /// What it left behind.
        output: Output,
        /// What it made: one of each kind that the task's evidence policy asks for.
        artifacts: Vec<Artifact>,
        /// The checks it ran: each that the task's evidence policy asks for, with exit code 0.
        checks: Vec<CheckResult>,
        /// Of a review task: what the reviewer found.
        verdict: Verdict,
        /// With the verdict: what to change.
        comment: String,
    },
    /// It failed; the task's policy decides about another try.
    Failed {
        /// One sentence for a person.
        error: String,
        /// What kind of failure, such as `timeout`; may be empty.
        class: String,
        /// For the class `rate_limited`: what the provider asked for.
        retry_after: Duration,
        /// What it left behind.
        output: Output,
    },
    /// It failed and will never work.
    FailedPermanently {
        /// One sentence for a person.
        error: String,
        /// What it left behind.
        output: Output,
    },
    /// Handed back unharmed.
    Released,
    /// It stopped because it was asked to. Of a job that was not, the task is handed back.
    Cancelled,
}

impl Done {
    /// Done, with this result.
    pub fn completed(result: impl Into<Bytes>) -> Self {
        Done::Completed {
            result: result.into(),
            output: Output::default(),
            artifacts: Vec::new(),
            checks: Vec::new(),
            verdict: Verdict::Unspecified,
            comment: String::new(),
        }
    }

    /// A review: the work is good.
    pub fn accept(comment: impl Into<String>) -> Self {
        Done::review(Verdict::Accept, comment.into())
    }

    /// A review: the work goes back to its author, with what to change.
    pub fn rework(comment: impl Into<String>) -> Self {
        Done::review(Verdict::Rework, comment.into())
    }

    fn review(verdict: Verdict, comment: String) -> Self {
        Done::Completed {
            result: Bytes::new(),
            output: Output::default(),
            artifacts: Vec::new(),
            checks: Vec::new(),
            verdict,
            comment,
        }
    }

    /// It failed; another try may do better.
    pub fn failed(error: impl Into<String>) -> Self {
        let (class, retry_after) = (String::new(), Duration::ZERO);
        Done::Failed { error: error.into(), class, retry_after, output: Output::default() }
    }

    /// A provider refused for now and said for how long. No failure is counted; whatever uses the same breakers waits.
    pub fn rate_limited(error: impl Into<String>, retry_after: Duration) -> Self {
        let class = RATE_LIMITED.to_owned();
        Done::Failed { error: error.into(), class, retry_after, output: Output::default() }
    }

    /// It failed and will never work: no other try.
    pub fn failed_permanently(error: impl Into<String>) -> Self {
        Done::FailedPermanently { error: error.into(), output: Output::default() }
    }

    /// With what it left behind. Says nothing of a task that was handed back or cancelled.
    #[must_use]
    pub fn with_output(mut self, left: Output) -> Self {
        match &mut self {
            Done::Completed { output, .. } | Done::Failed { output, .. } | Done::FailedPermanently { output, .. } => {
                *output = left;
            }
            Done::Released | Done::Cancelled => {}
        }
        self
    }

    /// With one more thing that it made. Only completed work has any.
    #[must_use]
    pub fn with_artifact(mut self, artifact: Artifact) -> Self {
        if let Done::Completed { artifacts, .. } = &mut self {
            artifacts.push(artifact);
        }
        self
    }

    /// With one more check that it ran. Only completed work has any.
    #[must_use]
    pub fn with_check(mut self, name: impl Into<String>, exit_code: i32) -> Self {
        if let Done::Completed { checks, .. } = &mut self {
            checks.push(CheckResult { name: name.into(), exit_code });
        }
        self
    }

    /// With the kind of failure: `timeout`, `connection`, `busy`, `validation`, `authentication`, `not_found`, or a name
    /// of your own. Only what failed and may be tried again has one.
    #[must_use]
    pub fn class(mut self, name: impl Into<String>) -> Self {
        if let Done::Failed { class, .. } = &mut self {
            *class = name.into();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_is_kept_with_completed_work_only() {
        let artifact = Artifact { kind: "diff".to_owned(), ..Artifact::default() };
        let done = Done::completed("ok").with_artifact(artifact.clone()).with_check("test", 0).with_check("lint", 1);
        let Done::Completed { artifacts, checks, verdict, .. } = done else { panic!("it is completed") };
        assert_eq!((artifacts.len(), checks.len(), verdict), (1, 2, Verdict::Unspecified));
        assert!(matches!(Done::Released.with_artifact(artifact).with_check("test", 0), Done::Released));
    }

    #[test]
    fn a_failure_has_a_class_and_an_output() {
        let output = Output { exit_code: Some(3), ..Output::default() };
        let done = Done::failed("no answer").class("timeout").with_output(output);
        let Done::Failed { error, class, retry_after, output } = done else { panic!("it failed") };
        assert_eq!((error.as_str(), class.as_str(), retry_after), ("no answer", "timeout", Duration::ZERO));
        assert_eq!(output.exit_code, Some(3));
        let limited = Done::rate_limited("429", Duration::from_secs(20));
        let Done::Failed { class, retry_after, .. } = limited else { panic!("it failed") };
        assert_eq!((class.as_str(), retry_after.as_secs()), (RATE_LIMITED, 20));
    }

    #[test]
    fn a_review_has_a_verdict_and_a_comment() {
        let Done::Completed { verdict, comment, .. } = Done::rework("shorter") else { panic!("a review is completed") };
        assert_eq!((verdict, comment.as_str()), (Verdict::Rework, "shorter"));
        assert!(matches!(Done::accept(""), Done::Completed { verdict: Verdict::Accept, .. }));
    }
}
