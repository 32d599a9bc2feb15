//! How much of a long list is asked for, and the calls that bring it.

use clap::Args;
use serde_json::{Value, json};

use crate::cli::Context;
use crate::cli::exit::Failure;

/// The most that one call brings.
const PAGE: u32 = 1_000;
const DEFAULT_LIMIT: u32 = 100;

/// How much of a long list.
#[derive(Args)]
pub(crate) struct Paging {
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = DEFAULT_LIMIT, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// All of them, however many calls it takes
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// Go on where an earlier call stopped
    #[arg(long, value_name = "TOKEN")]
    page_token: Option<String>,
}

impl Paging {
    /// The whole list.
    pub(crate) fn everything() -> Self {
        Self { limit: PAGE, all: true, page_token: None }
    }

    /// Whether it begins at the beginning.
    pub(crate) fn is_first(&self) -> bool {
        self.page_token.is_none()
    }

    /// How many the next call may bring; `None`: enough.
    pub(crate) fn next_limit(&self, so_far: usize) -> Option<u32> {
        if self.all {
            return Some(PAGE);
        }
        let left = (self.limit as usize).saturating_sub(so_far);
        if left == 0 { None } else { Some(u32::try_from(left).unwrap_or(PAGE).min(PAGE)) }
    }

    /// Says that there is more.
    fn note_rest(&self, context: &Context, next_page_token: &str) {
        if !next_page_token.is_empty() {
            context.out.note(&format!("there is more: --all, or --page-token {next_page_token}"));
        }
    }
}

/// Rows from as many pages as were asked for.
pub(crate) struct Pages<T> {
    pub(crate) rows: Vec<T>,
    next_page_token: String,
    rev: u64,
}

impl<T> Pages<T> {
    /// Asks for page after page: `fetch` gets a limit and a page token, and gives rows, the next token and the rev.
    pub(crate) async fn collect<F>(
        context: &Context,
        paging: &Paging,
        mut fetch: impl FnMut(u32, String) -> F,
    ) -> Result<Self, Failure>
    where
        F: Future<Output = Result<(Vec<T>, String, u64), quorate_client::Error>>,
    {
        let first = paging.page_token.clone().unwrap_or_default();
        let mut pages = Pages { rows: Vec::new(), next_page_token: first, rev: 0 };
        while let Some(limit) = paging.next_limit(pages.rows.len()) {
            let (rows, next_page_token, rev) = fetch(limit, pages.next_page_token).await?;
            pages.rows.extend(rows);
            (pages.next_page_token, pages.rev) = (next_page_token, rev);
            if pages.next_page_token.is_empty() {
                break;
            }
        }
        paging.note_rest(context, &pages.next_page_token);
        Ok(pages)
    }

    pub(crate) fn json(&self, name: &str, view: impl Fn(&T) -> Value) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(view).collect();
        json!({ name: rows, "next_page_token": self.next_page_token, "rev": self.rev })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_end_at_the_limit() {
        let paging = |limit, all| Paging { limit, all, page_token: None };
        assert_eq!(paging(100, false).next_limit(0), Some(100));
        assert_eq!(paging(2_500, false).next_limit(0), Some(1_000));
        assert_eq!(paging(2_500, false).next_limit(2_000), Some(500));
        assert_eq!(paging(100, false).next_limit(100), None);
        assert_eq!(Paging::everything().next_limit(7_000), Some(1_000));
    }
}
