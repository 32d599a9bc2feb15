//! In which order the values of each list were appended, as far as reads tell, and what no read may give.
//!
//! The order of a list is that of its longest read. Values that are in no read come after those, nobody knows in which
//! order.
//!
//! Deliberately absent: order between lists. That is [`super::graph`]'s.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Result, ensure};

use crate::check::Finding;

use super::transaction::{Read, Transaction};

/// An append; transactions are meant by their place among all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item<'a> {
    pub(super) value: &'a str,
    pub(super) by: usize,
    /// The transaction appended no more to this key.
    is_last: bool,
}

/// What is known of one list.
#[derive(Debug, Default)]
pub(super) struct List<'a> {
    appended: HashMap<&'a str, Item<'a>>,
    longest: &'a [String],
    /// Whose read that is.
    longest_of: usize,
    /// What took effect, though no read shows it.
    pub(super) unread: Vec<Item<'a>>,
}

impl<'a> List<'a> {
    /// The place of a read in the order: so many values were there. `None`: it does not fit in it.
    pub(super) fn place(&self, read: &Read<'_>) -> Option<usize> {
        self.longest.starts_with(read.list).then_some(read.list.len())
    }

    /// How many values are in the order.
    pub(super) fn len(&self) -> usize {
        self.longest.len()
    }

    /// The append of a value in the order, if somebody can have done it.
    pub(super) fn item(&self, at: usize) -> Option<Item<'a>> {
        self.appended.get(self.longest.get(at)?.as_str()).copied()
    }
}

/// Every list.
#[derive(Debug)]
pub(super) struct Lists<'a> {
    keys: BTreeMap<&'a str, List<'a>>,
    /// Of each transaction, whether it took effect as far as anybody can tell.
    counts: Vec<bool>,
}

impl<'a> Lists<'a> {
    /// What the transactions say. Fails if a value was appended twice to one key: then no list tells its order.
    pub(super) fn of(transactions: &'a [Transaction<'_>]) -> Result<Self> {
        let mut keys: BTreeMap<&'a str, List<'a>> = BTreeMap::new();
        for (by, transaction) in transactions.iter().enumerate() {
            let last: HashMap<&str, &str> = transaction.appends().collect();
            for (key, value) in transaction.appends() {
                let item = Item { value, by, is_last: last.get(key) == Some(&value) };
                let earlier = keys.entry(key).or_default().appended.insert(value, item);
                ensure!(earlier.is_none(), "{value} was appended twice to {key:?}, so its reads cannot be told apart");
            }
            for Read { key, list, .. } in transaction.reads() {
                let known = keys.entry(key).or_default();
                if list.len() > known.longest.len() {
                    (known.longest, known.longest_of) = (list, by);
                }
            }
        }
        let mut lists = Self { counts: transactions.iter().map(Transaction::is_answered).collect(), keys };
        lists.count_what_was_read(transactions);
        lists.note_what_was_not();
        Ok(lists)
    }

    fn count_what_was_read(&mut self, transactions: &[Transaction<'_>]) {
        for list in self.keys.values() {
            for item in (0..list.len()).filter_map(|at| list.item(at)) {
                let has_failed = transactions.get(item.by).is_none_or(Transaction::has_failed);
                if let Some(counts) = self.counts.get_mut(item.by) {
                    *counts |= !has_failed;
                }
            }
        }
    }

    fn note_what_was_not(&mut self) {
        for list in self.keys.values_mut() {
            let read: BTreeSet<&str> = list.longest.iter().map(String::as_str).collect();
            let unread = list.appended.values().filter(|item| !read.contains(item.value));
            let mut unread: Vec<Item<'a>> =
                unread.filter(|item| self.counts.get(item.by) == Some(&true)).copied().collect();
            unread.sort_by_key(|item| (item.by, item.value));
            list.unread = unread;
        }
    }

    /// Every list with its key.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'a str, &List<'a>)> {
        self.keys.iter().map(|(key, list)| (*key, list))
    }

    /// The list of a key.
    pub(super) fn get(&self, key: &str) -> Option<(&'a str, &List<'a>)> {
        self.keys.get_key_value(key).map(|(key, list)| (*key, list))
    }

    /// Whether a transaction took effect as far as anybody can tell.
    pub(super) fn counts(&self, by: usize) -> bool {
        self.counts.get(by) == Some(&true)
    }

    /// What no read may give.
    pub(super) fn findings(&self, transactions: &[Transaction<'_>]) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut told = BTreeSet::new();
        for (by, transaction) in transactions.iter().enumerate() {
            for read in transaction.reads() {
                let Some((key, list)) = self.get(read.key) else { continue };
                let reader = Reader { by, key, list, transactions };
                findings.extend(reader.of_values(&read, &mut told));
                findings.extend(reader.of_whole(&read));
            }
        }
        findings
    }
}

/// Who reads what.
struct Reader<'a, 'l> {
    by: usize,
    key: &'l str,
    list: &'a List<'l>,
    transactions: &'a [Transaction<'l>],
}

impl Reader<'_, '_> {
    fn finding(&self, text: String, other: Option<usize>) -> Finding {
        let id = |by: usize| self.transactions.get(by).map(Transaction::id);
        Finding::new(text, [Some(self.by), other].into_iter().flatten().filter_map(id))
    }

    /// What is wrong with single values; each is told once.
    fn of_values(&self, read: &Read<'_>, told: &mut BTreeSet<(String, String)>) -> Vec<Finding> {
        let (by, key) = (self.by, self.key);
        let mut seen = BTreeSet::new();
        let mut findings = Vec::new();
        for value in read.list {
            let item = self.list.appended.get(value.as_str());
            let has_failed = |item: &Item<'_>| self.transactions.get(item.by).is_some_and(Transaction::has_failed);
            let text = match item {
                _ if !seen.insert(value) => format!("#{by} read {value} twice in {key:?}, appended once"),
                None => format!("#{by} read {value} in {key:?}, which nobody appended"),
                Some(item) if has_failed(item) => {
                    format!("G1a: #{by} read {value} in {key:?}, which #{} appended, and that failed", item.by)
                }
                Some(_) => continue,
            };
            if told.insert((key.to_owned(), value.clone())) {
                findings.push(self.finding(text, item.map(|item| item.by)));
            }
        }
        findings
    }

    /// What is wrong with the list as it was read.
    fn of_whole(&self, read: &Read<'_>) -> Vec<Finding> {
        let (by, key) = (self.by, self.key);
        let mut findings = Vec::new();
        if !read.sees_own {
            let list = read.list;
            let text = format!("#{by} read {list:?} in {key:?}, which does not end with what it had appended itself");
            findings.push(self.finding(text, None));
        }
        if self.list.place(read).is_none() {
            let (list, longest, of) = (read.list, self.list.longest, self.list.longest_of);
            let text = format!("#{by} read {list:?} in {key:?} and #{of} read {longest:?}: neither begins the other");
            findings.push(self.finding(text, Some(of)));
        }
        let last = read.list.last().and_then(|value| self.list.appended.get(value.as_str()));
        if let Some(Item { value, by: writer, is_last: false }) = last
            && *writer != by
        {
            let text = format!("G1b: #{by} read {key:?} up to {value}, after which #{writer} appended more to it");
            findings.push(self.finding(text, Some(*writer)));
        }
        findings
    }
}
