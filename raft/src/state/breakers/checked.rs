//! What settings must look like, and their defaults. Deliberately absent: the state; only the request is looked at.

use quorate_proto::v1::BreakerSettings;

use super::MAX_TEXT_BYTES;
use crate::error::{Outcome, invalid};
use crate::state::check_id;

/// Failures in a row that open a breaker of which nobody said otherwise.
pub const DEFAULT_THRESHOLD: u32 = 5;
/// How long such a breaker stays open.
pub const DEFAULT_OPEN_MS: u64 = 60_000;
/// How long its probe may say nothing.
pub const DEFAULT_PROBE_TIMEOUT_MS: u64 = 300_000;
/// The highest threshold.
pub const MAX_THRESHOLD: u32 = 10_000;
/// The longest time of any kind: 30 days.
pub const MAX_OPEN_MS: u64 = 30 * 86_400_000;
/// The most classes that may be excluded.
pub const MAX_EXCLUDED: usize = 32;

/// An agent that is gone says nothing of why: the cluster says it, and it counts, whatever is excluded.
const LOST: &str = "lost";
const DEFAULT_EXCLUDED: &str = "timeout";

/// The settings of a cluster that was told none.
pub(super) fn built_in() -> BreakerSettings {
    BreakerSettings {
        failure_threshold: DEFAULT_THRESHOLD,
        open_ms: DEFAULT_OPEN_MS,
        probe_timeout_ms: DEFAULT_PROBE_TIMEOUT_MS,
        excluded_classes: vec![DEFAULT_EXCLUDED.to_owned()],
        exclude_nothing: false,
    }
}

/// Checks settings and fills them in: numbers from the built-in ones, excluded classes from those that held so far.
pub(super) fn settings(mut wanted: BreakerSettings, so_far: &BreakerSettings) -> Outcome<BreakerSettings> {
    wanted.failure_threshold = match wanted.failure_threshold {
        0 => DEFAULT_THRESHOLD,
        threshold @ 1..=MAX_THRESHOLD => threshold,
        got => {
            let message = format!(
                "settings.failure_threshold must be 1 to {MAX_THRESHOLD}, or 0 for {DEFAULT_THRESHOLD}; got {got}"
            );
            return Err(invalid("settings.failure_threshold", message));
        }
    };
    wanted.open_ms = span("settings.open_ms", wanted.open_ms, DEFAULT_OPEN_MS)?;
    wanted.probe_timeout_ms = span("settings.probe_timeout_ms", wanted.probe_timeout_ms, DEFAULT_PROBE_TIMEOUT_MS)?;
    match (wanted.excluded_classes.is_empty(), wanted.exclude_nothing) {
        (true, true) => {}
        (true, false) => {
            wanted.excluded_classes = so_far.excluded_classes.clone();
            wanted.exclude_nothing = so_far.exclude_nothing;
        }
        (false, true) => {
            let message =
                "settings.exclude_nothing cannot stand beside settings.excluded_classes; leave one of them out";
            return Err(invalid("settings.exclude_nothing", message));
        }
        (false, false) => wanted.excluded_classes = classes(wanted.excluded_classes)?,
    }
    Ok(wanted)
}

fn span(field: &str, got: u64, default: u64) -> Outcome<u64> {
    match got {
        0 => Ok(default),
        1..=MAX_OPEN_MS => Ok(got),
        _ => Err(invalid(field, format!("{field} must be 1 to {MAX_OPEN_MS}, or 0 for {default}; got {got}"))),
    }
}

fn classes(mut classes: Vec<String>) -> Outcome<Vec<String>> {
    let field = "settings.excluded_classes";
    for (i, class) in classes.iter().enumerate() {
        check_id(&format!("{field}[{i}]"), class)?;
        if class == LOST {
            return Err(invalid(&format!("{field}[{i}]"), format!("{field}[{i}]: a lost lease always counts")));
        }
    }
    classes.sort();
    classes.dedup();
    if classes.len() > MAX_EXCLUDED {
        return Err(invalid(field, format!("{field} must be at most {MAX_EXCLUDED} names; got {}", classes.len())));
    }
    Ok(classes)
}

/// Free text has a bound.
pub(super) fn length(field: &str, text: &str) -> Outcome<()> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(invalid(field, format!("{field} must be at most {MAX_TEXT_BYTES} bytes; got {}", text.len())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(classes: &[&str]) -> BreakerSettings {
        let excluded_classes = classes.iter().map(|class| (*class).to_owned()).collect();
        BreakerSettings { excluded_classes, ..BreakerSettings::default() }
    }

    #[test]
    fn what_is_left_out_gets_its_default() {
        assert_eq!(settings(BreakerSettings::default(), &built_in()).unwrap(), built_in());
    }

    #[test]
    fn excluded_classes_stay_until_others_are_named() {
        let busy = settings(named(&["timeout", "busy", "busy"]), &built_in()).unwrap();
        assert_eq!(busy.excluded_classes, ["busy", "timeout"]);
        let longer = settings(BreakerSettings { open_ms: 5, ..BreakerSettings::default() }, &busy).unwrap();
        assert_eq!((longer.open_ms, longer.excluded_classes), (5, busy.excluded_classes.clone()));
        let nothing = BreakerSettings { exclude_nothing: true, ..BreakerSettings::default() };
        let nothing = settings(nothing, &busy).unwrap();
        assert!(nothing.excluded_classes.is_empty() && nothing.exclude_nothing);
        assert_eq!(settings(BreakerSettings::default(), &nothing).unwrap(), nothing);
        assert!(!settings(named(&["busy"]), &nothing).unwrap().exclude_nothing);
    }

    #[test]
    fn a_lost_lease_cannot_be_excluded() {
        assert!(settings(named(&["busy", "lost"]), &built_in()).is_err());
        assert!(settings(named(&[""]), &built_in()).is_err());
        let many: Vec<String> = (0..=MAX_EXCLUDED).map(|i| format!("c{i}")).collect();
        assert!(
            settings(BreakerSettings { excluded_classes: many, ..BreakerSettings::default() }, &built_in()).is_err()
        );
    }
}
