//! A table of numbers: columns for people, or one line of JSON.
//!
//! Deliberately absent: escaping. Names are fixed words and numbers.

use anyhow::Result;

/// No column is narrower.
const LEAST_WIDTH: usize = 9;

/// How it is printed.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    Table,
    Json,
}

/// One column of numbers.
pub(crate) struct Column {
    heading: &'static str,
    /// Its name in JSON.
    key: &'static str,
    decimals: usize,
}

pub(crate) const fn column(heading: &'static str, key: &'static str, decimals: usize) -> Column {
    Column { heading, key, decimals }
}

/// The rows so far.
pub(crate) struct Table {
    /// Its name in JSON.
    name: &'static str,
    /// What the numbers mean, for people.
    about: String,
    columns: &'static [Column],
    rows: Vec<(String, Vec<f64>)>,
}

impl Table {
    pub(crate) fn new(name: &'static str, about: impl Into<String>, columns: &'static [Column]) -> Table {
        Table { name, about: about.into(), columns, rows: Vec::new() }
    }

    /// Adds a row: one number a column.
    pub(crate) fn row(&mut self, name: impl Into<String>, numbers: impl IntoIterator<Item = f64>) {
        self.rows.push((name.into(), numbers.into_iter().collect()));
    }

    pub(crate) fn print(&self, form: Form) -> Result<()> {
        match form {
            Form::Table => self.text().iter().try_for_each(|line| crate::print(line)),
            Form::Json => crate::print(&self.json()),
        }
    }

    pub(crate) fn text(&self) -> Vec<String> {
        let names = self.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
        let heading: Vec<String> = self.columns.iter().map(|column| right(column, column.heading)).collect();
        let mut lines = vec![self.about.clone(), format!("{:names$} {}", "", heading.join(" "))];
        for (name, numbers) in &self.rows {
            let cells: Vec<String> = self.cells(numbers).map(|(column, number)| right(column, &number)).collect();
            lines.push(format!("{name:names$} {}", cells.join(" ")));
        }
        lines
    }

    fn json(&self) -> String {
        let row = |(name, numbers): &(String, Vec<f64>)| {
            let cells: Vec<String> =
                self.cells(numbers).map(|(column, number)| format!(r#","{}":{number}"#, column.key)).collect();
            format!(r#"{{"name":"{name}"{}}}"#, cells.concat())
        };
        format!(r#"{{"{}":[{}]}}"#, self.name, self.rows.iter().map(row).collect::<Vec<_>>().join(","))
    }

    fn cells(&self, numbers: &[f64]) -> impl Iterator<Item = (&'static Column, String)> {
        self.columns.iter().zip(numbers).map(|(column, number)| {
            let decimals = column.decimals;
            (column, format!("{number:.decimals$}"))
        })
    }
}

fn right(column: &Column, text: &str) -> String {
    format!("{text:>width$}", width = column.heading.chars().count().max(LEAST_WIDTH))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[column("clients", "clients", 0), column("p50", "p50_ms", 2)];

    fn table() -> Table {
        let mut table = Table::new("kv", "in ms", COLUMNS);
        table.row("put", [16.0, 1.256]);
        table.row("a longer name", [1.0, 0.5]);
        table
    }

    #[test]
    fn people_get_columns() {
        assert_eq!(
            table().text(),
            [
                "in ms",
                "                clients       p50",
                "put                  16      1.26",
                "a longer name         1      0.50",
            ]
        );
    }

    #[test]
    fn programs_get_one_line() {
        assert_eq!(
            table().json(),
            r#"{"kv":[{"name":"put","clients":16,"p50_ms":1.26},{"name":"a longer name","clients":1,"p50_ms":0.50}]}"#
        );
    }
}
