//! When a schedule ticks: cron expressions in a time zone, and plain intervals.
//!
//! Local time is searched as if it had no jumps, and each match is then looked up in the zone:
//! - a local time that does not exist (clocks go forward) is passed over for the next match that does;
//! - one that exists twice (clocks go back) ticks once, the first time.
//!
//! Only the leader's loop and the doors ask; replicas are told which tick comes next, so they need not know zones.
//! Deliberately absent: the current time, and what a tick does.

use chrono::{DateTime, NaiveDateTime, Offset, TimeZone, Utc};
use chrono_tz::Tz;
use croner::Cron;
use quorate_proto::v1::ScheduleSpec;
use quorate_raft::state::schedules::{MAX_CRON_BYTES, MAX_EVERY_MS, MIN_EVERY_MS};

/// How many ticks of an expression are counted at most, where many passed unfired.
pub(crate) const MAX_COUNTED: u64 = 1_000;
/// Stands for "never again": far enough that nobody will see it.
pub(crate) const NEVER_MS: u64 = u64::MAX;

/// How many matches are tried for one that a zone has: each second of a day that a zone skipped.
const MAX_PASSED_OVER: usize = 90_000;

const CRON_SHAPE: &str = "five fields (minute hour day-of-month month day-of-week), or six with seconds first, \
     such as \"0 2 * * *\" or \"*/15 * * * * *\"";

/// What is wrong with a specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// The field at fault.
    pub(crate) field: &'static str,
    /// One sentence for a person.
    pub(crate) message: String,
}

impl Wrong {
    fn new(field: &'static str, what: impl std::fmt::Display) -> Self {
        Wrong { field, message: format!("{field} {what}") }
    }
}

/// Ticks that one firing stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Covered {
    /// How many, the first included. Of an expression at most [`MAX_COUNTED`] are counted.
    pub(crate) ticks: u64,
    /// The first tick after them.
    pub(crate) next_ms: u64,
}

/// The ticks of one specification.
#[derive(Debug, Clone)]
pub(crate) enum Calendar {
    /// One interval after another.
    Every { every_ms: u64 },
    /// What an expression matches in a zone.
    Cron { cron: Box<Cron>, zone: Tz },
}

impl Calendar {
    /// Reads a specification.
    pub(crate) fn of(spec: &ScheduleSpec) -> Result<Self, Wrong> {
        match (spec.cron.as_str(), spec.every_ms) {
            ("", 0) => Err(Wrong::new("spec.cron", "or spec.every_ms must be set")),
            ("", every_ms) if !(MIN_EVERY_MS..=MAX_EVERY_MS).contains(&every_ms) => {
                let what = format!("must be {MIN_EVERY_MS} to {MAX_EVERY_MS}; got {every_ms}");
                Err(Wrong::new("spec.every_ms", what))
            }
            ("", _) if !spec.time_zone.is_empty() => {
                Err(Wrong::new("spec.time_zone", "must be left out where spec.every_ms is set"))
            }
            ("", every_ms) => Ok(Calendar::Every { every_ms }),
            (_, 1..) => Err(Wrong::new("spec.every_ms", "must be left out where spec.cron is set")),
            (expression, 0) => Ok(Calendar::Cron { cron: Box::new(parse(expression)?), zone: zone(&spec.time_zone)? }),
        }
    }

    /// The first tick of a schedule that begins at `now_ms`; a refusal if there is none.
    pub(crate) fn first_ms(&self, now_ms: u64) -> Result<u64, Wrong> {
        let never = || Wrong::new("spec.cron", "never matches: no such date comes; expected one that does");
        self.after(now_ms).ok_or_else(never)
    }

    /// The tick after `tick_ms`, which need not be one itself unless this is an interval.
    pub(crate) fn after(&self, tick_ms: u64) -> Option<u64> {
        match self {
            Calendar::Every { every_ms } => tick_ms.checked_add(*every_ms),
            Calendar::Cron { cron, zone } => next_match(cron, *zone, tick_ms),
        }
    }

    /// The next `count` ticks after `from_ms`, fewer if there are no more.
    pub(crate) fn upcoming(&self, from_ms: u64, count: usize) -> Vec<u64> {
        std::iter::successors(self.after(from_ms), |tick_ms| self.after(*tick_ms)).take(count).collect()
    }

    /// The ticks from `tick_ms`, itself one, up to and including `until_ms`.
    pub(crate) fn covered(&self, tick_ms: u64, until_ms: u64) -> Covered {
        let until_ms = until_ms.max(tick_ms);
        match self {
            Calendar::Every { every_ms } => {
                let ticks = (until_ms - tick_ms) / (*every_ms).max(1) + 1;
                Covered { ticks, next_ms: tick_ms.saturating_add(ticks.saturating_mul(*every_ms)) }
            }
            Calendar::Cron { cron, zone } => {
                let further = std::iter::successors(self.after(tick_ms), |tick_ms| self.after(*tick_ms));
                let further = further.take_while(|tick_ms| *tick_ms <= until_ms).zip(1..MAX_COUNTED).count() as u64;
                Covered { ticks: further + 1, next_ms: next_match(cron, *zone, until_ms).unwrap_or(NEVER_MS) }
            }
        }
    }
}

/// A time as people write it, in the zone of a specification; UTC if that is not known here.
pub(crate) fn written(at_ms: u64, time_zone: &str) -> String {
    let Some(at) = i64::try_from(at_ms).ok().and_then(DateTime::from_timestamp_millis) else { return "-".to_owned() };
    match zone(time_zone) {
        Ok(zone) => at.with_timezone(&zone).format("%Y-%m-%d %H:%M:%S %Z").to_string(),
        Err(_) => at.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
    }
}

fn zone(name: &str) -> Result<Tz, Wrong> {
    if name.is_empty() {
        return Ok(Tz::UTC);
    }
    let what = || format!("must be an IANA zone such as \"Europe/Berlin\", or be left out for UTC; got {name:?}");
    name.parse().map_err(|_| Wrong::new("spec.time_zone", what()))
}

fn parse(expression: &str) -> Result<Cron, Wrong> {
    let wrong = |why: &dyn std::fmt::Display| {
        Wrong::new("spec.cron", format!("must be {CRON_SHAPE}; got {expression:?}: {why}"))
    };
    check_shape(expression).map_err(|why| wrong(&why))?;
    expression.parse::<Cron>().map_err(|error| wrong(&error))
}

/// Refuses what the parser would take in its stride: fields that match nothing, and extensions we do not promise.
fn check_shape(expression: &str) -> Result<(), &'static str> {
    if expression.len() > MAX_CRON_BYTES {
        return Err("it is too long");
    }
    if !expression.bytes().all(|b| b.is_ascii_alphanumeric() || b" \t*,-/?#".contains(&b)) {
        return Err("a field holds a character that means nothing");
    }
    let fields: Vec<&str> = expression.split_whitespace().collect();
    if !(5..=6).contains(&fields.len()) {
        return Err("it has another number of fields");
    }
    if fields.iter().any(|field| field.split(',').any(str::is_empty)) {
        return Err("a list has an empty item");
    }
    if fields.last().is_some_and(|weekday| weekday.split(',').any(|item| item.eq_ignore_ascii_case("L"))) {
        return Err("L in the day of week needs a day, as in 5L");
    }
    Ok(())
}

/// The first match after `after_ms` that the zone has.
fn next_match(cron: &Cron, zone: Tz, after_ms: u64) -> Option<u64> {
    // Whole seconds: a match has no fraction.
    let after = DateTime::<Utc>::from_timestamp(i64::try_from(after_ms / 1_000).ok()?, 0)?;
    let offset = zone.offset_from_utc_datetime(&after.naive_utc()).fix();
    let mut local: NaiveDateTime = after.naive_utc().checked_add_offset(offset)?;
    for _ in 0..MAX_PASSED_OVER {
        // Local time dressed up as UTC, which has no jumps.
        local = cron.find_next_occurrence(&local.and_utc(), false).ok()?.naive_utc();
        let found = zone.from_local_datetime(&local).earliest();
        let found_ms = found.and_then(|found| u64::try_from(found.timestamp_millis()).ok());
        if let Some(found_ms) = found_ms.filter(|found_ms| *found_ms > after_ms) {
            return Some(found_ms);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron(expression: &str, time_zone: &str) -> Calendar {
        let spec =
            ScheduleSpec { cron: expression.to_owned(), time_zone: time_zone.to_owned(), ..ScheduleSpec::default() };
        Calendar::of(&spec).unwrap()
    }

    fn ms(text: &str) -> u64 {
        u64::try_from(DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis()).unwrap()
    }

    /// The ticks after `from` are these.
    fn ticks(calendar: &Calendar, from: &str, expected: &[&str]) {
        let found = calendar.upcoming(ms(from), expected.len());
        let expected: Vec<u64> = expected.iter().map(|text| ms(text)).collect();
        assert_eq!(found, expected, "{:?}", found.iter().map(|at| written(*at, "")).collect::<Vec<_>>());
    }

    #[test]
    fn five_fields_and_six() {
        ticks(&cron("0 2 * * *", ""), "2026-01-31T02:00:00Z", &["2026-02-01T02:00:00Z", "2026-02-02T02:00:00Z"]);
        ticks(&cron("30 9 * * MON-FRI", ""), "2026-01-02T09:30:00Z", &["2026-01-05T09:30:00Z", "2026-01-06T09:30:00Z"]);
        let each_quarter_minute = ["2026-01-01T00:00:15Z", "2026-01-01T00:00:30Z", "2026-01-01T00:00:45Z"];
        ticks(&cron("*/15 * * * * *", ""), "2026-01-01T00:00:00.500Z", &each_quarter_minute);
        ticks(&cron("*/15 * * * * *", ""), "2026-01-01T00:00:14.999Z", &each_quarter_minute);
    }

    #[test]
    fn a_zone_shifts_the_ticks() {
        let nine = cron("0 9 * * *", "Europe/Berlin");
        ticks(&nine, "2026-01-15T00:00:00Z", &["2026-01-15T08:00:00Z"]);
        ticks(&nine, "2026-07-15T00:00:00Z", &["2026-07-15T07:00:00Z"]);
    }

    #[test]
    fn the_twenty_ninth_of_february_comes_every_fourth_year_but_for_2100() {
        let leap = cron("0 0 29 2 *", "");
        ticks(&leap, "2026-01-01T00:00:00Z", &["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]);
        ticks(&leap, "2096-03-01T00:00:00Z", &["2104-02-29T00:00:00Z"]);
    }

    #[test]
    fn a_local_time_that_does_not_exist_is_passed_over() {
        let daily = cron("30 2 * * *", "Europe/Berlin");
        let around = ["2026-03-28T02:30:00+01:00", "2026-03-30T02:30:00+02:00"];
        ticks(&daily, "2026-03-28T00:00:00+01:00", &around);
        let quarters = ["2026-03-29T01:45:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-29T03:15:00+02:00"];
        ticks(&cron("*/15 * * * *", "Europe/Berlin"), "2026-03-29T01:30:00+01:00", &quarters);
    }

    #[test]
    fn a_local_time_that_exists_twice_ticks_once() {
        let daily = cron("30 2 * * *", "Europe/Berlin");
        let around = ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"];
        ticks(&daily, "2026-10-25T00:00:00+02:00", &around);
        ticks(&daily, "2026-10-25T02:15:00+01:00", &around[1..]);
        let quarters = ["2026-10-25T02:30:00+02:00", "2026-10-25T02:45:00+02:00", "2026-10-25T03:00:00+01:00"];
        ticks(&cron("*/15 * * * *", "Europe/Berlin"), "2026-10-25T02:15:00+02:00", &quarters);
    }

    #[test]
    fn an_interval_goes_on_from_its_last_tick() {
        let every = Calendar::Every { every_ms: 30_000 };
        assert_eq!(every.first_ms(1_000), Ok(31_000));
        assert_eq!(every.upcoming(31_000, 2), [61_000, 91_000]);
        assert_eq!(every.covered(31_000, 31_000), Covered { ticks: 1, next_ms: 61_000 });
        assert_eq!(every.covered(31_000, 60_999), Covered { ticks: 1, next_ms: 61_000 });
        assert_eq!(every.covered(31_000, 61_000), Covered { ticks: 2, next_ms: 91_000 });
        assert_eq!(every.covered(31_000, 0), Covered { ticks: 1, next_ms: 61_000 }, "the tick itself is covered");
    }

    #[test]
    fn covered_ticks_are_counted_up_to_a_bound() {
        let daily = cron("0 2 * * *", "");
        let (first, third) = (ms("2026-01-01T02:00:00Z"), ms("2026-01-03T02:00:00Z"));
        let fourth = ms("2026-01-04T02:00:00Z");
        assert_eq!(daily.covered(first, third), Covered { ticks: 3, next_ms: fourth });
        assert_eq!(daily.covered(first, fourth - 1), Covered { ticks: 3, next_ms: fourth });
        let each_second = cron("* * * * * *", "");
        let day_later = first + 86_400_000;
        assert_eq!(each_second.covered(first, day_later), Covered { ticks: MAX_COUNTED, next_ms: day_later + 1_000 });
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_field() {
        let refused = |cron: &str, every_ms: u64, time_zone: &str| {
            let (cron, time_zone) = (cron.to_owned(), time_zone.to_owned());
            Calendar::of(&ScheduleSpec { cron, every_ms, time_zone, ..ScheduleSpec::default() }).unwrap_err()
        };
        let expressions = [
            "* * * *",
            "* * * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "@daily",
            "*/0 * * * *",
            "5-1 * * * *",
            ", * * * *",
            "1,,2 * * * *",
            "* * * * L",
            "* * * * +1",
            "soon",
            "ü * * * *",
        ];
        for expression in expressions {
            let wrong = refused(expression, 0, "");
            assert_eq!(wrong.field, "spec.cron", "{expression}");
            assert!(wrong.message.starts_with("spec.cron must be five fields"), "{}", wrong.message);
        }
        assert_eq!(refused("", 0, "").field, "spec.cron");
        assert_eq!(refused("* * * * *", 1_000, "").field, "spec.every_ms");
        assert_eq!(refused("", 999, "").field, "spec.every_ms");
        assert_eq!(refused("", 1_000, "Europe/Berlin").field, "spec.time_zone");
        for zone in ["Berlin", "CET+1", "Mars/Olympus"] {
            let wrong = refused("* * * * *", 0, zone);
            assert_eq!(wrong.field, "spec.time_zone");
            assert!(wrong.message.contains("Europe/Berlin"), "{}", wrong.message);
        }
    }

    #[test]
    fn an_expression_that_never_matches_is_refused() {
        for never in ["0 0 30 2 *", "0 0 31 4,6,9,11 *"] {
            let wrong = cron(never, "Europe/Berlin").first_ms(ms("2026-01-01T00:00:00Z")).unwrap_err();
            assert_eq!(wrong.field, "spec.cron");
            assert!(wrong.message.contains("never matches"), "{}", wrong.message);
        }
    }

    #[test]
    fn times_are_written_in_their_zone() {
        let at = ms("2026-07-15T07:00:00Z");
        assert_eq!(written(at, ""), "2026-07-15 07:00:00 UTC");
        assert_eq!(written(at, "Europe/Berlin"), "2026-07-15 09:00:00 CEST");
        assert_eq!(written(at, "nowhere"), "2026-07-15 07:00:00 UTC");
        assert_eq!(written(NEVER_MS, ""), "-");
    }
}
