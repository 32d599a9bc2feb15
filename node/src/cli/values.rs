//! How the values of flags and files are written: durations, priorities, shares, names of states.
//!
//! Owns: parsing from text, with messages that say what would be accepted.
//! Deliberately absent: clap, files, printing.

use std::time::Duration;

use quorate_client::v1::{AgentStatus, AttemptOutcome, ExecutionMode, TaskStatus, Unroutable};
use tokio::io::AsyncReadExt;

use super::exit::Failure;

/// The names of priorities; any other number from 0 to 10 has none.
const PRIORITIES: [(&str, u32); 5] = [("critical", 10), ("high", 7), ("medium", 5), ("low", 3), ("background", 1)];
/// The other names.
const ALIASES: [(&str, u32); 4] = [("p0", 10), ("p1", 7), ("p2", 5), ("p3", 3)];
const HIGHEST_PRIORITY: u32 = 10;
/// The longest id that the cluster takes.
const MAX_ID_BYTES: usize = 128;

/// `500ms`, `30s`, `10m`, `2h`, `1d`: a whole number and its unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || String::from("expected a whole number with a unit, such as 500ms, 30s, 10m, 2h or 1d");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(|| String::from("the duration is too long"))
}

/// Like [`duration`], without zero.
pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("expected more than zero".into()),
        duration => Ok(duration),
    }
}

/// Whether this can be an id: of a task, an agent, a kind of failure.
pub(crate) fn is_id(text: &str) -> bool {
    (1..=MAX_ID_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:/@".contains(&byte))
}

/// The whole milliseconds of a duration.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// By name, by alias or by number.
pub(crate) fn priority(text: &str) -> Result<u32, String> {
    let name = text.trim().to_ascii_lowercase();
    let known = PRIORITIES.iter().chain(&ALIASES).find(|(known, _)| *known == name).map(|(_, value)| *value);
    known.or_else(|| name.parse().ok().filter(|value| *value <= HIGHEST_PRIORITY)).ok_or_else(|| {
        String::from("expected critical, high, medium, low, background, P0 to P3, or a number from 0 to 10")
    })
}

/// The name of a priority, if it has one.
pub(crate) fn priority_name(value: u32) -> Option<&'static str> {
    PRIORITIES.iter().find(|(_, known)| *known == value).map(|(name, _)| *name)
}

/// `0.8` as 800.
pub(crate) fn permille(text: &str) -> Result<u32, String> {
    let share: f64 = text.parse().map_err(|_| String::from("expected a number from 0.0 to 1.0"))?;
    if !(0.0..=1.0).contains(&share) {
        return Err("expected a number from 0.0 to 1.0".into());
    }
    // In range: 0 to 1,000.
    Ok((share * 1000.0).round() as u32)
}

/// The status of a task.
pub(crate) fn task_status(text: &str) -> Result<TaskStatus, String> {
    const NAMES: &str =
        "pending, ready, blocked, in_progress, reported, completed, skipped, failed, timed_out, cancelled";
    named(text, "TASK_STATUS_", NAMES, TaskStatus::from_str_name)
}

/// The status of an agent.
pub(crate) fn agent_status(text: &str) -> Result<AgentStatus, String> {
    const NAMES: &str = "available, busy, draining, unavailable, failed";
    named(text, "AGENT_STATUS_", NAMES, AgentStatus::from_str_name)
}

/// How an agent works.
pub(crate) fn execution_mode(text: &str) -> Result<ExecutionMode, String> {
    const NAMES: &str = "autonomous, scheduled, continuous, collaborative";
    named(text, "EXECUTION_MODE_", NAMES, ExecutionMode::from_str_name)
}

/// How an attempt ended.
pub(crate) fn attempt_outcome(text: &str) -> Result<AttemptOutcome, String> {
    const NAMES: &str = "running, completed, failed, timed_out, lost, released, cancelled";
    named(text, "ATTEMPT_OUTCOME_", NAMES, AttemptOutcome::from_str_name)
}

/// What happens to a task that nobody can do.
pub(crate) fn unroutable(text: &str) -> Result<Unroutable, String> {
    named(text, "UNROUTABLE_", "wait, fail", Unroutable::from_str_name)
}

/// A JSON value, kept as it was written.
pub(crate) fn json_text(text: &str) -> Result<String, String> {
    match serde_json::from_str::<serde::de::IgnoredAny>(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("not JSON: {error}; a text needs its quotes, as in '\"text\"'")),
    }
}

fn named<T>(text: &str, prefix: &str, names: &str, parse: fn(&str) -> Option<T>) -> Result<T, String> {
    let name = text.trim().replace('-', "_").to_ascii_uppercase();
    let value = if name == "UNSPECIFIED" { None } else { parse(&format!("{prefix}{name}")) };
    value.ok_or_else(|| format!("expected one of {names}"))
}

/// The bytes of a file, or of stdin for `-`, with the name that messages give it.
pub(super) async fn read_input(file: String) -> Result<(String, Vec<u8>), Failure> {
    let (name, bytes) = if file == "-" {
        let mut bytes = Vec::new();
        (String::from("stdin"), tokio::io::stdin().read_to_end(&mut bytes).await.map(|_| bytes))
    } else {
        let bytes = tokio::fs::read(&file).await;
        (file, bytes)
    };
    match bytes {
        Ok(bytes) => Ok((name, bytes)),
        Err(error) => Err(Failure::bad_input(format!("{name}: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7_200)));
        assert_eq!(duration("1d"), Ok(Duration::from_secs(86_400)));
        for wrong in ["", "30", "s", "-1s", "1.5s", "1 s", "1h30m", "10M", "99999999999999999999s", "ms500"] {
            assert!(duration(wrong).unwrap_err().contains("500ms"), "{wrong}");
        }
        assert_eq!(duration("18446744073709551615d"), Err("the duration is too long".into()));
        assert!(positive_duration("0s").is_err());
    }

    #[test]
    fn ids_are_short_and_plain() {
        assert!(is_id("provider:anthropic/v1.2_x-y@z") && is_id(&"a".repeat(MAX_ID_BYTES)));
        for wrong in ["", "two words", "a=b", "ä", &"a".repeat(MAX_ID_BYTES + 1)] {
            assert!(!is_id(wrong), "{wrong}");
        }
    }

    #[test]
    fn priorities_have_names_aliases_and_numbers() {
        for (name, value) in [("CRITICAL", 10), ("high", 7), ("Medium", 5), ("low", 3), ("background", 1)] {
            assert_eq!(priority(name), Ok(value));
            assert_eq!(priority_name(value), Some(name.to_ascii_lowercase().as_str()));
        }
        for (name, value) in [("P0", 10), ("p1", 7), ("P2", 5), ("P3", 3), ("0", 0), ("10", 10)] {
            assert_eq!(priority(name), Ok(value));
        }
        for wrong in ["urgent", "11", "-1", "", "P4", "5.5"] {
            assert!(priority(wrong).unwrap_err().contains("from 0 to 10"), "{wrong}");
        }
        assert_eq!(priority_name(4), None);
    }

    #[test]
    fn shares_are_from_zero_to_one() {
        assert_eq!(permille("0.8"), Ok(800));
        assert_eq!(permille("1"), Ok(1000));
        assert_eq!(permille("0"), Ok(0));
        for wrong in ["1.1", "-0.1", "NaN", "80%", ""] {
            assert!(permille(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn states_are_written_in_lower_case() {
        assert_eq!(task_status("in_progress"), Ok(TaskStatus::InProgress));
        assert_eq!(task_status("in-progress"), Ok(TaskStatus::InProgress));
        assert_eq!(agent_status("BUSY"), Ok(AgentStatus::Busy));
        assert_eq!(execution_mode("continuous"), Ok(ExecutionMode::Continuous));
        assert_eq!(attempt_outcome("lost"), Ok(AttemptOutcome::Lost));
        assert_eq!(unroutable("fail"), Ok(Unroutable::Fail));
        assert!(task_status("unspecified").unwrap_err().contains("in_progress"));
        assert!(task_status("done").is_err());
    }

    #[test]
    fn json_is_checked_but_not_changed() {
        assert_eq!(json_text("{\"b\": 1, \"a\": 2}"), Ok("{\"b\": 1, \"a\": 2}".into()));
        assert!(json_text("hello").unwrap_err().contains("quotes"));
    }
}
