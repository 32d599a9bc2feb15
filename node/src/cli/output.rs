//! The only place that prints: tables for people, JSON for programs, notes to stderr.
//!
//! Results go to stdout and nothing else does. Text that came from others loses its control characters in tables, so a
//! title cannot steer a terminal. A reader that goes away early (`| head`) ends the command quietly.
//! Deliberately absent: what a table says; that is each command's.

use std::io::{ErrorKind, IsTerminal, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde_json::Value;

use super::exit::Failure;
use super::values;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Tables and short lines, for people
    Table,
    /// JSON, for programs; times are milliseconds since 1970
    Json,
}

/// Where results and notes go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Out {
    format: Format,
}

impl Out {
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    /// One of many results; on a terminal the next one is written over it.
    pub(crate) fn passing(&self, json: impl FnOnce() -> Value, text: impl FnOnce() -> String) -> Result<(), Failure> {
        match self.format {
            Format::Table if std::io::stdout().is_terminal() => {
                self.raw(format!("\r\x1b[K{}", plain(&text())).as_bytes())
            }
            _ => self.event(json, text),
        }
    }

    /// Takes away what [`Out::passing`] left on a terminal.
    pub(crate) fn wipe(&self) -> Result<(), Failure> {
        match self.format {
            Format::Table if std::io::stdout().is_terminal() => self.raw(b"\r\x1b[K"),
            _ => Ok(()),
        }
    }

    /// The result of a command.
    pub(crate) fn show(&self, json: impl FnOnce() -> Value, text: impl FnOnce() -> String) -> Result<(), Failure> {
        let mut result = match self.format {
            Format::Json => format!("{:#}", json()),
            Format::Table => text(),
        };
        if !result.is_empty() {
            result.push('\n');
        }
        self.raw(result.as_bytes())
    }

    /// One of many results, on one line.
    pub(crate) fn event(&self, json: impl FnOnce() -> Value, text: impl FnOnce() -> String) -> Result<(), Failure> {
        let line = match self.format {
            Format::Json => json().to_string(),
            Format::Table => plain(&text()),
        };
        self.raw(format!("{line}\n").as_bytes())
    }

    /// Many results: a table for people, a line each for programs, which need not wait for the last one.
    pub(crate) fn lines(
        &self,
        json: impl IntoIterator<Item = Value>,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Json => json.into_iter().try_for_each(|one| self.event(|| one, String::new)),
            Format::Table => self.show(|| Value::Null, text),
        }
    }

    /// A result that is bytes: as they are for people, with what is known of them for programs.
    pub(crate) fn content(&self, json: impl FnOnce() -> Value, bytes: &[u8]) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.show(json, String::new),
            Format::Table => self.raw(bytes),
        }
    }

    /// Bytes as they are.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => Failure::reader_gone(),
            _ => Failure::failed(format!("cannot write to stdout: {error}")),
        })
    }

    /// One line beside the result, to stderr.
    pub(crate) fn note(&self, text: &str) {
        // If stderr is gone there is nobody left to tell.
        let _ = writeln!(std::io::stderr().lock(), "{}", plain(text));
    }

    /// One line about what goes on, if somebody watches.
    pub(crate) fn progress(&self, text: &str) {
        if std::io::stderr().is_terminal() {
            self.note(text);
        }
    }

    /// Why the command failed.
    pub(crate) fn failure(&self, failure: &Failure) {
        if !failure.is_silent() {
            self.note(&format!("error: {failure}"));
        }
    }
}

/// A table with a header; `empty` instead if there are no rows.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: Vec<[String; N]>, empty: &str) -> String {
    if rows.is_empty() {
        return empty.to_owned();
    }
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(header);
    for row in rows {
        table.add_row(row.map(|cell| plain(&cell)));
    }
    table.to_string()
}

/// Names and values of one thing; empty values are left out.
pub(crate) fn facts(rows: Vec<(&str, String)>) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    for (name, value) in rows.into_iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([name.to_owned(), plain(&value)]);
    }
    table.to_string()
}

/// One line without control characters.
pub(crate) fn plain(text: &str) -> String {
    text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// At most `limit` characters of free text.
pub(crate) fn short(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// `-` for nothing.
pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.to_owned() }
}

/// The local clock; used for ages only, so a clock that is off makes odd ages and nothing worse.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, values::millis)
}

/// How long ago `then_ms` was; `-` for never.
pub(crate) fn age(then_ms: u64, now_ms: u64) -> String {
    if then_ms == 0 { "-".into() } else { span(now_ms.saturating_sub(then_ms)) }
}

/// Two units at most: `850ms`, `4.2s`, `12s`, `5m 3s`, `2h 10m`, `3d 4h`.
pub(crate) fn span(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0 => format!("{ms}ms"),
        1..10 => format!("{seconds}.{}s", ms % 1_000 / 100),
        10..60 => format!("{seconds}s"),
        60..3_600 => two_units(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => two_units(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => two_units(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// [`span`] of a duration.
pub(crate) fn took(duration: Duration) -> String {
    span(values::millis(duration))
}

fn two_units(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 { format!("{large}{large_unit}") } else { format!("{large}{large_unit} {small}{small_unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_show_two_units_at_most() {
        let cases = [
            (0, "0ms"),
            (850, "850ms"),
            (4_250, "4.2s"),
            (12_999, "12s"),
            (60_000, "1m"),
            (303_000, "5m 3s"),
            (7_800_000, "2h 10m"),
            (273_600_000, "3d 4h"),
        ];
        for (ms, text) in cases {
            assert_eq!(span(ms), text);
        }
        assert_eq!(age(0, 5), "-");
        assert_eq!(age(10, 5), "0ms", "a clock that is behind must not matter");
    }

    #[test]
    fn tables_are_safe_and_say_when_they_are_empty() {
        assert_eq!(table(["id"], Vec::new(), "no tasks"), "no tasks");
        let text = table(["id", "title"], vec![["a".into(), "\u{1b}[31mred\nline".into()]], "");
        assert!(text.contains(" [31mred line"), "{text}");
        assert!(text.starts_with('┌'), "{text}");
        assert!(!facts(vec![("id", "a".into()), ("error", String::new())]).contains("error"));
    }

    #[test]
    fn short_counts_characters() {
        assert_eq!(short("äöü", 3), "äöü");
        assert_eq!(short("äöüß", 3), "äöü…");
    }
}
