//! `quorate kv`: documents, their versions, and what is kept of them.
//!
//! ```text
//!   write     put, delete, rollback: with the conditions under which they happen
//!   read      get, list, history, watch
//!   policy    how many earlier versions are kept, and for how long
//! ```

mod policy;
mod read;
mod write;

use clap::Subcommand;

use self::policy::PolicyCommand;
use self::read::{GetArgs, ListArgs};
use self::write::PutArgs;
use super::Context;
use super::exit::Failure;

/// `quorate kv …`
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Write a document
    #[command(after_help = write::EXAMPLES)]
    Put(Box<PutArgs>),
    /// Write the value of a document to stdout, byte for byte; with -o json, all that is known of it
    // A document's version, not the binary's.
    #[command(after_help = read::GET_EXAMPLES, disable_version_flag = true)]
    Get(GetArgs),
    /// List documents, by key
    #[command(after_help = read::LIST_EXAMPLES)]
    List(ListArgs),
    /// Remove a document; its history stays
    Delete {
        /// The document
        #[arg(value_name = "KEY")]
        key: String,
        /// Only if this is its mod_rev
        #[arg(long, value_name = "REV", value_parser = clap::value_parser!(u64).range(1..))]
        if_rev: Option<u64>,
    },
    /// List the versions of a document, newest first
    History {
        /// The document
        #[arg(value_name = "KEY")]
        key: String,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        limit: u32,
    },
    /// Write an earlier version anew, as the newest
    #[command(disable_version_flag = true)]
    Rollback {
        /// The document
        #[arg(value_name = "KEY")]
        key: String,
        /// Which version, as `quorate kv history` shows them
        #[arg(value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
        version: u64,
        /// Only if this is its mod_rev now
        #[arg(long, value_name = "REV", value_parser = clap::value_parser!(u64).range(1..))]
        if_rev: Option<u64>,
    },
    /// Print every change from now on as one line
    Watch {
        /// Only keys that begin so
        #[arg(value_name = "PREFIX")]
        prefix: String,
    },
    /// See and change how many earlier versions are kept, and for how long
    #[command(subcommand)]
    Policy(PolicyCommand),
}

/// Does what the arguments say.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Put(args) => write::put(context, *args).await,
        Command::Get(args) => read::get(context, &args).await,
        Command::List(args) => read::list(context, &args).await,
        Command::Delete { key, if_rev } => write::delete(context, &key, if_rev).await,
        Command::History { key, limit } => read::history(context, &key, limit).await,
        Command::Rollback { key, version, if_rev } => write::rollback(context, key, version, if_rev).await,
        Command::Watch { prefix } => read::watch(context, &prefix).await,
        Command::Policy(command) => policy::run(context, command).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the words after `quorate kv` mean.
    pub(super) fn parsed(line: &[&str]) -> Option<Command> {
        crate::cli::subcommand([&["kv"][..], line].concat()).ok()
    }

    #[test]
    fn conditions_and_versions_are_numbers_from_one() {
        assert!(matches!(parsed(&["delete", "a", "--if-rev", "7"]), Some(Command::Delete { if_rev: Some(7), .. })));
        assert!(matches!(parsed(&["rollback", "a", "3"]), Some(Command::Rollback { version: 3, if_rev: None, .. })));
        for wrong in [&["delete", "a", "--if-rev", "0"][..], &["rollback", "a", "0"], &["rollback", "a"], &["watch"]] {
            assert!(parsed(wrong).is_none(), "{wrong:?}");
        }
    }
}
