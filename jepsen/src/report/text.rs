//! Text from outside, made harmless, and numbers as people read them.
//!
//! Deliberately absent: markup. Whatever passes through here is text and stays text.

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

/// At most so many characters, of which none means anything to a browser.
pub(super) fn clipped(text: &str, most: usize) -> String {
    let mut safe = String::with_capacity(text.len().min(most));
    for (place, c) in text.chars().enumerate() {
        if place == most {
            safe.push('…');
            break;
        }
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // No page may hold one.
            c if c.is_control() => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

/// A time span.
pub(super) fn span(ns: u64) -> String {
    match ns {
        0..MS => format!("{:.3} ms", ns as f64 / MS as f64),
        MS..SECOND => format!("{:.1} ms", ns as f64 / MS as f64),
        SECOND.. => format!("{:.2} s", ns as f64 / SECOND as f64),
    }
}

/// A moment of the run.
pub(super) fn moment(ns: u64) -> String {
    format!("{:.6}", ns as f64 / SECOND as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_browser_understands_is_left() {
        assert_eq!(clipped("<a href='x'>\"&\u{7}", 100), "&lt;a href=&#39;x&#39;&gt;&quot;&amp;\u{fffd}");
    }

    #[test]
    fn what_is_long_is_cut_between_characters() {
        assert_eq!(clipped("äöü", 2), "äö…");
        assert_eq!(clipped("äöü", 3), "äöü");
        assert_eq!(clipped("<<<", 1), "&lt;…");
    }

    #[test]
    fn a_span_is_in_its_own_unit() {
        assert_eq!(span(1_600), "0.002 ms");
        assert_eq!(span(12_340_000), "12.3 ms");
        assert_eq!(span(2_500_000_000), "2.50 s");
        assert_eq!(moment(1_234_567_890), "1.234568");
    }
}
