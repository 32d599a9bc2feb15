//! `quorate cluster add`, `remove` and `replace`: a change of the members, step by step.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use quorate_client::MembersChanges;
use quorate_client::v1::{MembersChange, MembersStep};
use serde_json::{Value, json};

use super::super::Context;
use super::super::exit::Failure;

pub(super) const ADD_EXAMPLES: &str = "\
EXAMPLES:
  quorate cluster add 4=10.0.0.4:7401
      lets in node 4, which was started with the file of `quorate cluster join`; it votes once it has caught up

It may be asked for again at any time: what is done is passed over. An even number of voters outlives no more losses
than one less, so go on to the next odd one.";

pub(super) const REMOVE_EXAMPLES: &str = "\
EXAMPLES:
  quorate cluster remove 2
      node 2 votes no more and may be dead already; a leader hands over first

Its number is never used again. To get the machine back, wipe its data and let it `quorate cluster join`.";

pub(super) const REPLACE_EXAMPLES: &str = "\
EXAMPLES:
  quorate cluster replace 3 6=10.0.0.6:7401
      node 6 catches up, then votes in place of node 3, which may be dead

It may be asked for again at any time: what is done is passed over.";

/// Between two lines about a node that catches up, where nobody watches.
const QUIET: Duration = Duration::from_secs(5);

/// `4=10.0.0.4:7401`
pub(super) fn member(text: &str) -> Result<(u64, String), String> {
    let parsed = text.split_once('=').and_then(|(node_id, address)| Some((node_id.parse::<u64>().ok()?, address)));
    match parsed {
        Some((node_id, address)) if node_id > 0 => Ok((node_id, super::init::address(address)?)),
        _ => Err(format!("expected N=HOST:PORT, such as 4=10.0.0.4:7401; got {text:?}")),
    }
}

/// Follows a change to its end.
pub(super) async fn follow(context: &Context, mut changes: MembersChanges) -> Result<(), Failure> {
    let watched = std::io::stdout().is_terminal();
    let mut quiet_until = Instant::now();
    while let Some(change) = changes.next().await {
        let change = match change {
            Ok(change) => change,
            Err(error) => {
                context.out.wipe()?;
                return Err(error.into());
            }
        };
        if change.step() != MembersStep::Learning {
            context.out.wipe()?;
            context.out.event(|| view(&change), || change.message.clone())?;
        } else if watched || Instant::now() >= quiet_until {
            context.out.passing(|| view(&change), || change.message.clone())?;
            quiet_until = Instant::now() + QUIET;
        }
    }
    Ok(())
}

fn view(change: &MembersChange) -> Value {
    let step = change.step().as_str_name();
    json!({
        "step": step.strip_prefix("MEMBERS_STEP_").unwrap_or(step).to_ascii_lowercase(),
        "node_id": change.node_id,
        "behind_entries": change.behind_entries,
        "message": change.message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_a_number_and_an_address() {
        assert_eq!(member("4=h:7401"), Ok((4, "h:7401".to_owned())));
        assert_eq!(member("4=[::1]:7401"), Ok((4, "[::1]:7401".to_owned())));
        for bad in ["", "4", "4=", "0=h:1", "x=h:1", "4=h", "h:1=4"] {
            assert!(member(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_step_is_shown_by_its_name() {
        let change = MembersChange { step: MembersStep::CaughtUp as i32, node_id: 4, ..Default::default() };
        assert_eq!(view(&change)["step"], "caught_up");
    }
}
