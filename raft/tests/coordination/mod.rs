//! What the property tests of the bus, the locks and the documents are made of.
//!
//! - [`steps`]: random histories; [`body`]: the command that a step stands for, as the state is.
//! - [`view`]: a namespace as its rows tell. [`bus`], [`locks`] and [`kv`] check what must hold of it, and of it
//!   against the one before.
//! - [`bus_model`], [`kv_model`]: what the rooms should do, in as few words as possible and as slowly as they like;
//!   [`model`]: both under one roof, with transactions.
//! - [`tally`]: what happened, counted, so that no check holds because nothing ever came to it.

pub(crate) mod body;
pub(crate) mod bus;
pub(crate) mod bus_model;
mod bus_queue;
pub(crate) mod kv;
pub(crate) mod kv_model;
pub(crate) mod locks;
pub(crate) mod model;
pub(crate) mod steps;
pub(crate) mod tally;
pub(crate) mod view;

use quorate_proto::log::{Answer, answer};
use quorate_proto::v1::Rejection;

/// When a command happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) now_ms: u64,
    pub(crate) rev: u64,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    Done,
    /// Refused by its room.
    Refused(Rejection),
    /// Refused before it came to one: by the request record, by a fence, or because its namespace is not there.
    Stopped(Rejection),
    /// Answered as it was before.
    Resent,
}

impl Outcome {
    pub(crate) fn of(answer: &Answer, at: At) -> Self {
        match &answer.body {
            _ if answer.rev != at.rev => Outcome::Resent,
            Some(answer::Body::Rejected(rejection)) => {
                let field = rejection.field.as_str();
                if field.starts_with("request.") || ["fence", "namespace"].contains(&field) {
                    Outcome::Stopped(rejection.clone())
                } else {
                    Outcome::Refused(rejection.clone())
                }
            }
            _ => Outcome::Done,
        }
    }
}

/// Whether a time that was set has come; 0 is none.
pub(crate) fn is_past(at_ms: u64, now_ms: u64) -> bool {
    (1..=now_ms).contains(&at_ms)
}
