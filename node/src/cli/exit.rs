//! How a command of `quorate` can end, and the exit code for it.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | refused or failed: the cluster said no, a task ended badly, a local error |
//! | 2 | bad usage or bad input: arguments, a file, a field |
//! | 3 | not found |
//! | 4 | the cluster could not be reached in time; nothing was changed |
//! | 5 | outcome unknown: the change may or may not have taken effect |
//!
//! `lock run` and `scope run` end as the command does that they ran.
//!
//! Owns: [`Failure`], and the mapping from the client's errors to it.
//! Deliberately absent: printing; that is `output`.

use std::process::ExitCode;

use quorate_client::Error;
use quorate_client::v1::RejectionCode;

use crate::config::ConfigError;

/// Shown under `quorate --help`.
pub(crate) const EXIT_CODES: &str = "\
EXIT CODES:
  0  done
  1  refused or failed: the cluster said no, a task ended badly, a local error
  2  bad usage or bad input: arguments, a file, a field
  3  not found
  4  the cluster could not be reached in time; nothing was changed
  5  outcome unknown: the change may or may not have taken effect";

/// The kinds of failure that a caller can tell apart by the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Failed,
    BadInput,
    NotFound,
    Unavailable,
    OutcomeUnknown,
    /// Whoever read our output has gone, as `head` does: not an error.
    ReaderGone,
    /// A command that was run ended so, and has said itself what there was to say.
    Command(u8),
}

/// Why a command did not do what it was asked to; one line for a person and an exit code for a script.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    kind: Kind,
    message: String,
}

impl Failure {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Refused or failed: exit code 1.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// Bad usage or bad input: exit code 2.
    pub(crate) fn bad_input(message: impl Into<String>) -> Self {
        Self::new(Kind::BadInput, message)
    }

    /// No such thing: exit code 3.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// Nobody answered, and nothing was changed: exit code 4.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }

    /// Nobody reads our output any more.
    pub(crate) fn reader_gone() -> Self {
        Self::new(Kind::ReaderGone, "the reader of the output has gone")
    }

    /// A command that was run ended with this code.
    pub(crate) fn of_command(code: u8) -> Self {
        Self::new(Kind::Command(code), format!("the command ended with {code}"))
    }

    /// Keeps the kind of a [`Failure`] or a mistake in the configuration, with the context around it; all else is exit code 1.
    pub(crate) fn from_anyhow(error: &anyhow::Error) -> Self {
        let kind = match error.downcast_ref::<Self>() {
            Some(failure) => failure.kind,
            None if error.is::<ConfigError>() => Kind::BadInput,
            None => Kind::Failed,
        };
        Self::new(kind, format!("{error:#}"))
    }

    /// Whether there is nobody and nothing to tell.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self.kind, Kind::ReaderGone | Kind::Command(_))
    }

    /// The number of the table above.
    pub(crate) fn code(&self) -> u8 {
        match self.kind {
            Kind::ReaderGone => 0,
            Kind::Failed => 1,
            Kind::BadInput => 2,
            Kind::NotFound => 3,
            Kind::Unavailable => 4,
            Kind::OutcomeUnknown => 5,
            Kind::Command(code) => code,
        }
    }

    /// For `main`.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Rejected { code, field, message } => {
                let kind = match code {
                    RejectionCode::NotFound => Kind::NotFound,
                    RejectionCode::InvalidArgument => Kind::BadInput,
                    _ => Kind::Failed,
                };
                // The message should name the field by itself; make sure of it.
                let named = field.is_empty() || message.contains(&field);
                Self::new(kind, if named { message } else { format!("{field}: {message}") })
            }
            Error::Fenced { .. } | Error::TimedOut { .. } | Error::Compacted { .. } => Self::new(Kind::Failed, text),
            Error::Unavailable { .. } => Self::new(Kind::Unavailable, text),
            Error::OutcomeUnknown { .. } => Self::new(Kind::OutcomeUnknown, text),
            Error::Config { .. } => Self::new(Kind::BadInput, text),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    fn rejected(code: RejectionCode, field: &str) -> Failure {
        Failure::from(Error::Rejected { code, field: field.into(), message: "it is wrong".into() })
    }

    #[test]
    fn every_kind_of_error_has_its_code() {
        assert_eq!(rejected(RejectionCode::NotFound, "").code(), 3);
        assert_eq!(rejected(RejectionCode::InvalidArgument, "").code(), 2);
        assert_eq!(rejected(RejectionCode::FailedPrecondition, "").code(), 1);
        assert_eq!(Failure::from(Error::Fenced { field: String::new(), message: String::new() }).code(), 1);
        assert_eq!(Failure::from(Error::Unavailable { message: String::new(), last: String::new() }).code(), 4);
        assert_eq!(Failure::from(Error::OutcomeUnknown { message: String::new() }).code(), 5);
        assert_eq!(Failure::from(Error::Config { message: String::new() }).code(), 2);
    }

    #[test]
    fn a_commands_own_code_is_passed_on_without_a_word() {
        let failure = Failure::of_command(75);
        assert!(failure.code() == 75 && failure.is_silent());
    }

    #[test]
    fn a_rejection_names_its_field() {
        assert_eq!(rejected(RejectionCode::InvalidArgument, "priority").to_string(), "priority: it is wrong");
        assert_eq!(rejected(RejectionCode::InvalidArgument, "").to_string(), "it is wrong");
    }

    #[test]
    fn context_keeps_the_code() {
        let error = Err::<(), _>(Failure::bad_input("node_id is 0")).context("quorate.toml").unwrap_err();
        let failure = Failure::from_anyhow(&error);
        assert_eq!((failure.code(), failure.to_string().as_str()), (2, "quorate.toml: node_id is 0"));
        assert_eq!(Failure::from_anyhow(&anyhow::anyhow!("a taken port")).code(), 1);
        assert_eq!(Failure::from_anyhow(&anyhow::Error::new(ConfigError("node_id".into()))).code(), 2);
    }
}
