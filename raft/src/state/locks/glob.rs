//! Globs: sets of paths, and whether two of them have a path in common.
//!
//! A glob is a sequence of segments, a segment a sequence of characters. In both, an item either stands for one (a
//! segment; a character out of a set) or for any number of them, none too (`**`; `*`). So one test answers for both,
//! and the answer is exact: [`meet`] walks the product of the two sequences, which has no more cells than their lengths
//! multiplied. Sets of characters are ranges and are never counted out.
//!
//! A path is one segment or more, none of them empty, without `/` in front. No set has `/` in it, so nothing but `**`
//! reaches from one segment into the next.
//!
//! Deliberately absent: case folding, `{a,b}`, the file system. `.` and `..` are refused rather than understood: two
//! ways to write one path would not be seen to be the same.

use std::iter::{Enumerate, Peekable};
use std::str::Chars;

/// First and last, both in it.
type Range = (u32, u32);

/// Every character but `/`.
const ANY: [Range; 3] = [(0, '/' as u32 - 1), ('/' as u32 + 1, 0xD7FF), (0xE000, char::MAX as u32)];

/// One of a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Item<T> {
    /// Any number, none too.
    Many,
    One(T),
}

/// Sorted, without overlaps, never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
struct CharSet(Vec<Range>);

type Segment = Vec<Item<CharSet>>;

/// A set of paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(Vec<Item<Segment>>);

impl Glob {
    /// Reads a glob; what is wrong with it, and where, if it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut chars: Input<'_> = text.chars().enumerate().peekable();
        chars.next_if(|(_, c)| *c == '/');
        let mut segments = Vec::new();
        let mut segment = Segment::new();
        while let Some((at, c)) = chars.next() {
            match c {
                '/' => {
                    segments.push(close(std::mem::take(&mut segment), at)?);
                    if chars.peek().is_none() {
                        segments.push(Item::Many);
                        return Ok(Glob(segments));
                    }
                }
                '*' => segment.push(Item::Many),
                '?' => segment.push(Item::One(CharSet(ANY.to_vec()))),
                '[' => segment.push(Item::One(class(&mut chars, at)?)),
                _ => segment.push(Item::One(CharSet::one(literal(&mut chars, at, c)?))),
            }
        }
        segments.push(close(segment, text.chars().count())?);
        Ok(Glob(segments))
    }

    /// Whether the path is in it. A `/` in front of the path is ignored.
    pub fn matches(&self, path: &str) -> bool {
        let path = unrooted(path);
        let literal = |segment: &str| -> Item<Segment> {
            Item::One(segment.chars().map(|c| Item::One(CharSet::one(c))).collect())
        };
        let is_path = path.split('/').all(|segment| !segment.is_empty());
        is_path && self.overlaps(&Glob(path.split('/').map(literal).collect()))
    }

    /// Whether some path is in both.
    pub fn overlaps(&self, other: &Glob) -> bool {
        self.overlaps_counted(other, &mut 0)
    }

    /// The same, and adds to `work` how much there was to compare.
    pub(super) fn overlaps_counted(&self, other: &Glob, work: &mut u64) -> bool {
        self.0.meets(&other.0, work)
    }
}

/// Whether the text in front of all that is special already says that two globs have nothing in common. It does for
/// nearly all pairs, and costs no parsing.
pub fn begin_apart(a: &str, b: &str) -> bool {
    let plain = |byte: u8| !b"*?[\\".contains(&byte);
    // A `/` before a last `**` need not be there, but then the path ends: nothing stands in its place.
    let pairs = unrooted(a).bytes().zip(unrooted(b).bytes());
    pairs.take_while(|(x, y)| plain(*x) && plain(*y)).any(|(x, y)| x != y)
}

fn unrooted(text: &str) -> &str {
    text.strip_prefix('/').unwrap_or(text)
}

/// What two of a kind may have in common.
trait Meets {
    fn meets(&self, other: &Self, work: &mut u64) -> bool;
}

impl Meets for CharSet {
    fn meets(&self, other: &Self, work: &mut u64) -> bool {
        *work += (self.0.len() + other.0.len()) as u64;
        common(&self.0, &other.0).next().is_some()
    }
}

impl<T: Meets> Meets for Vec<Item<T>> {
    fn meets(&self, other: &Self, work: &mut u64) -> bool {
        meet(self, other, work)
    }
}

/// Whether some sequence can be read as either. Every set has something in it, so what stands for any number can take
/// any one item of the other.
fn meet<T: Meets>(mut a: &[Item<T>], mut b: &[Item<T>], work: &mut u64) -> bool {
    // What stands before the first `Many` of either lines up one to one, and so does what stands after the last.
    while let ([Item::One(x), a_rest @ ..], [Item::One(y), b_rest @ ..]) = (a, b) {
        if !x.meets(y, work) {
            return false;
        }
        (a, b) = (a_rest, b_rest);
    }
    while let ([a_rest @ .., Item::One(x)], [b_rest @ .., Item::One(y)]) = (a, b) {
        if !x.meets(y, work) {
            return false;
        }
        (a, b) = (a_rest, b_rest);
    }
    // Row i: for each j, whether a[i..] and b[j..] meet. From the last row to the first.
    let mut below = vec![false; b.len() + 1];
    for i in (0..=a.len()).rev() {
        let mut row = vec![false; b.len() + 1];
        for j in (0..=b.len()).rev() {
            *work += 1;
            row[j] = match (a.get(i), b.get(j)) {
                (None, None) => true,
                // It stands for nothing more, or for the other's next as well.
                (Some(Item::Many), next) => below[j] || (next.is_some() && row[j + 1]),
                (next, Some(Item::Many)) => row[j + 1] || (next.is_some() && below[j]),
                (Some(Item::One(x)), Some(Item::One(y))) => below[j + 1] && x.meets(y, work),
                (None, Some(Item::One(_))) | (Some(Item::One(_)), None) => false,
            };
        }
        below = row;
    }
    below[0]
}

impl CharSet {
    fn one(c: char) -> Self {
        CharSet(vec![(u32::from(c), u32::from(c))])
    }

    /// `None` if no character is in it.
    fn class(members: &[(char, char)], negated: bool) -> Option<Self> {
        let mut ranges: Vec<Range> = members.iter().map(|(low, high)| (u32::from(*low), u32::from(*high))).collect();
        ranges.sort_unstable();
        let outside = gaps(&ranges);
        let wanted = if negated { outside } else { gaps(&outside) };
        let set: Vec<Range> = common(&wanted, &ANY).collect();
        (!set.is_empty()).then_some(CharSet(set))
    }
}

/// What lies between sorted ranges, before the first and after the last.
fn gaps(ranges: &[Range]) -> Vec<Range> {
    let mut gaps = Vec::new();
    let mut next = 0_u32;
    for (low, high) in ranges {
        if *low > next {
            gaps.push((next, low - 1));
        }
        next = next.max(high + 1);
    }
    if next <= u32::from(char::MAX) {
        gaps.push((next, u32::from(char::MAX)));
    }
    gaps
}

/// What is in both, from the lowest.
fn common<'r>(a: &'r [Range], b: &'r [Range]) -> impl Iterator<Item = Range> + 'r {
    let (mut i, mut j) = (0, 0);
    std::iter::from_fn(move || {
        while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
            let both = (x.0.max(y.0), x.1.min(y.1));
            if x.1 < y.1 {
                i += 1;
            } else {
                j += 1;
            }
            if both.0 <= both.1 {
                return Some(both);
            }
        }
        None
    })
}

type Input<'t> = Peekable<Enumerate<Chars<'t>>>;

/// The segment that ends before character `at`.
fn close(segment: Segment, at: usize) -> Result<Item<Segment>, String> {
    let dot = Item::One(CharSet::one('.'));
    let many_in_a_row = |pair: &[Item<CharSet>]| matches!(pair, [Item::Many, Item::Many]);
    match segment.as_slice() {
        [] => Err(format!("a segment is empty before character {}", at + 1)),
        [Item::Many, Item::Many] => Ok(Item::Many),
        items if items.windows(2).any(many_in_a_row) => {
            Err(format!("** must be a whole segment, and is not before character {}", at + 1))
        }
        items if items.len() <= 2 && items.iter().all(|item| *item == dot) => {
            Err(format!("a segment must not be . or .., and is before character {}", at + 1))
        }
        _ => Ok(Item::One(segment)),
    }
}

/// A character that stands for itself: `c`, or the one after it if it is a backslash.
fn literal(chars: &mut Input<'_>, at: usize, c: char) -> Result<char, String> {
    if c != '\\' {
        return Ok(c);
    }
    match chars.next() {
        None => Err(format!("\\ at character {} must be followed by the character that it stands for", at + 1)),
        Some((_, '/')) => Err(format!("\\ at character {} cannot take /, which always divides segments", at + 1)),
        Some((_, c)) => Ok(c),
    }
}

/// The set of a class whose bracket opened at character `open`. A `-` in front or at the end stands for itself.
fn class(chars: &mut Input<'_>, open: usize) -> Result<CharSet, String> {
    let negated = chars.next_if(|(_, c)| *c == '!').is_some();
    let mut members = Vec::new();
    loop {
        match chars.next() {
            None => return Err(format!("[ at character {} is never closed by ]", open + 1)),
            Some((_, ']')) => break,
            Some((at, c)) => {
                let low = member(chars, at, c)?;
                if chars.next_if(|(_, c)| *c == '-').is_none() {
                    members.push((low, low));
                    continue;
                }
                match chars.next_if(|(_, c)| *c != ']') {
                    None => members.extend([(low, low), ('-', '-')]),
                    Some((at, c)) => {
                        let high = member(chars, at, c)?;
                        if high < low {
                            return Err(format!("{low}-{high} at character {} runs backwards", at + 1));
                        }
                        members.push((low, high));
                    }
                }
            }
        }
    }
    let set = if members.is_empty() { None } else { CharSet::class(&members, negated) };
    set.ok_or_else(|| format!("no character is in the class at character {}", open + 1))
}

fn member(chars: &mut Input<'_>, at: usize, c: char) -> Result<char, String> {
    match c {
        '/' => Err(format!("a class cannot hold / as at character {}, which always divides segments", at + 1)),
        _ => literal(chars, at, c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_glob_says_where() {
        for (text, part) in [
            ("", "empty before character 1"),
            ("/", "empty before character 2"),
            ("a//b", "empty before character 3"),
            ("a**", "** must be a whole segment, and is not before character 4"),
            ("x/***/y", "before character 6"),
            ("a/./b", ". or .."),
            ("../b", ". or .."),
            ("ab[cd", "[ at character 3 is never closed"),
            ("[a-", "[ at character 1 is never closed"),
            ("[a/b]", "a class cannot hold / as at character 3"),
            ("[z-a]", "z-a at character 4 runs backwards"),
            ("[]", "no character is in the class at character 1"),
            ("[!]", "no character is in the class"),
            ("[!\u{0}-.0-\u{10ffff}]", "no character is in the class"),
            ("ab\\", "\\ at character 3 must be followed"),
            ("a\\/b", "\\ at character 2 cannot take /"),
        ] {
            let why = Glob::parse(text).unwrap_err();
            assert!(why.contains(part), "{text:?}: {why}");
        }
    }

    #[test]
    fn sets_are_exact_at_their_ends() {
        let class = |members: &[(char, char)], negated| CharSet::class(members, negated);
        assert_eq!(class(&[('b', 'd'), ('c', 'f'), ('g', 'g')], false).unwrap().0, [(0x62, 0x67)]);
        assert_eq!(class(&[('.', '0')], false).unwrap().0, [(0x2E, 0x2E), (0x30, 0x30)], "without the /");
        assert_eq!(class(&[('\0', char::MAX)], true), None);
        // What is between these two are surrogates, which are no characters.
        assert_eq!(class(&[('\0', '\u{D7FF}'), ('\u{E000}', char::MAX)], true), None);
        assert_eq!(class(&[('\u{1}', char::MAX)], true).unwrap().0, [(0, 0)]);
    }

    #[test]
    fn a_long_pair_costs_no_more_than_its_lengths_multiplied() {
        let (a, b) = ("*a?".repeat(85), "?*b".repeat(85));
        let mut work = 0;
        let (a, b) = (Glob::parse(&a).unwrap(), Glob::parse(&b).unwrap());
        assert!(a.overlaps_counted(&b, &mut work), "xabxab…");
        assert!(work < 8 * 256 * 256, "{work}");
        let (a, b) = ("**/a/".repeat(50), "a/**/".repeat(50));
        let mut work = 0;
        assert!(Glob::parse(&a).unwrap().overlaps_counted(&Glob::parse(&b).unwrap(), &mut work));
        assert!(work < 8 * 256 * 256, "{work}");
    }
}
