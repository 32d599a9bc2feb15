//! Accounts between which money moves: whoever looks sees all of it, and what every look shows follows from the
//! transfers before it.
//!
//! ```text
//!   read                                                     -> {"accounts": {NAME: [balance, mod_rev], ...}}
//!   transfer {"from", "to", "amount", "from_rev", "to_rev"}  -> {"from": balance, "to": balance}
//! ```
//!
//! A read shows every account at one place of the log. A transfer happens only if both accounts are as they were at
//! `from_rev` and `to_rev`; it answers with the new balances.
//!
//! | must hold | for |
//! |---|---|
//! | the balances make up the whole, and none is below zero | every read |
//! | what it shows is what the transfers up to its rev have made | every read |
//! | both accounts are as its conditions say, and no other has its rev | every transfer |
//! | the rev of what ended before something else began is not larger | everything |
//!
//! A transfer of unknown outcome counts as done where a read shows both accounts as it would have left them, at one new
//! rev. No two of them fit one place: the second needs a rev of the first, and whoever knows that has read it.
//!
//! Deliberately absent: any search. Every version of an account has a rev of its own, so there is one order to replay.

use std::collections::BTreeMap;

use serde_json::Value;

use super::order::{Numbered, against_time, shared};
use super::{Checker, Finding, Report};
use crate::record::{History, Operation, Outcome};

const NAME: &str = "bank";

/// The checker.
#[derive(Clone, Copy, Debug)]
pub struct Bank {
    accounts: usize,
    opening: i64,
}

impl Bank {
    /// For so many accounts, each of which begins with `opening`.
    pub fn new(accounts: usize, opening: i64) -> Self {
        Self { accounts, opening }
    }

    fn sums(&self, read: &Read<'_>) -> Option<Finding> {
        let operation = read.operation;
        let balances: Vec<i64> = read.accounts.values().map(|account| account.balance).collect();
        let (sum, wanted) = (balances.iter().sum::<i64>(), self.opening * self.accounts as i64);
        if balances.len() == self.accounts && sum == wanted && balances.iter().all(|balance| *balance >= 0) {
            return None;
        }
        let text = format!(
            "read {} at rev {} shows {balances:?}, {sum} in all, where {} accounts hold {wanted} and none is below 0",
            operation.id, read.rev, self.accounts
        );
        Some(Finding::new(text, [operation.id]))
    }
}

impl Checker for Bank {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&self, history: &History) -> Report {
        let record = match Record::of(history) {
            Ok(record) => record,
            Err(why) => return Report::unknown(NAME, 0, why),
        };
        let judged = (record.reads.len() + record.transfers.len()) as u64;
        if record.reads.is_empty() {
            return Report::unknown(NAME, 0, "nobody read the accounts");
        }
        let mut findings: Vec<Finding> = record.reads.iter().filter_map(|read| self.sums(read)).collect();
        findings.extend(shared("the rev", &record.numbered()));
        findings.extend(against_time("the rev", &record.numbered()));
        findings.extend(replay(&record, self.opening));
        Report::of(NAME, judged, findings)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Account {
    balance: i64,
    mod_rev: u64,
}

type Accounts = BTreeMap<String, Account>;

struct Read<'h> {
    operation: &'h Operation,
    rev: u64,
    accounts: Accounts,
}

struct Transfer<'h> {
    operation: &'h Operation,
    from: &'h str,
    to: &'h str,
    amount: i64,
    from_rev: u64,
    to_rev: u64,
}

/// A transfer that was answered.
struct Made<'h> {
    transfer: Transfer<'h>,
    rev: u64,
    from: i64,
    to: i64,
}

#[derive(Default)]
struct Record<'h> {
    reads: Vec<Read<'h>>,
    transfers: Vec<Made<'h>>,
    unknown: Vec<Transfer<'h>>,
}

impl<'h> Record<'h> {
    fn of(history: &'h History) -> Result<Self, String> {
        let mut record = Record::default();
        for operation in &history.operations {
            let taken = match operation.f.as_str() {
                "read" => record.read(operation),
                "transfer" => record.transfer(operation),
                _ => None,
            };
            if taken.is_none() {
                return Err(format!("operation {} is no read or transfer of accounts: {operation:?}", operation.id));
            }
        }
        Ok(record)
    }

    fn read(&mut self, operation: &'h Operation) -> Option<()> {
        let Some(res) = operation.res() else { return Some(()) };
        let mut accounts = Accounts::new();
        for (name, shown) in res.get("accounts")?.as_object()? {
            let account = Account { balance: shown.get(0)?.as_i64()?, mod_rev: shown.get(1)?.as_u64()? };
            accounts.insert(name.clone(), account);
        }
        self.reads.push(Read { operation, rev: operation.rev()?, accounts });
        Some(())
    }

    fn transfer(&mut self, operation: &'h Operation) -> Option<()> {
        let arg = &operation.arg;
        let transfer = Transfer {
            operation,
            from: arg.get("from")?.as_str()?,
            to: arg.get("to")?.as_str()?,
            amount: arg.get("amount")?.as_i64()?,
            from_rev: arg.get("from_rev")?.as_u64()?,
            to_rev: arg.get("to_rev")?.as_u64()?,
        };
        match (operation.res(), &operation.outcome) {
            (Some(res), _) => {
                let balance = |side: &str| res.get(side).and_then(Value::as_i64);
                let (from, to) = (balance("from")?, balance("to")?);
                self.transfers.push(Made { transfer, rev: operation.rev()?, from, to });
            }
            (None, Outcome::Fail) => {}
            (None, _) => self.unknown.push(transfer),
        }
        Some(())
    }

    fn numbered(&self) -> Vec<Numbered<'h>> {
        let reads = self.reads.iter().map(|read| (read.operation, read.rev, false));
        let made = self.transfers.iter().map(|made| (made.transfer.operation, made.rev, true));
        reads.chain(made).map(|(operation, number, is_own)| Numbered { operation, number, is_own }).collect()
    }
}

enum Step<'r, 'h> {
    Made(&'r Made<'h>),
    Read(&'r Read<'h>),
}

/// Everything that was answered, by its place; a write before what was read there.
fn steps<'r, 'h>(record: &'r Record<'h>) -> Vec<Step<'r, 'h>> {
    let made = record.transfers.iter().map(|made| (made.rev, false, made.transfer.operation.id, Step::Made(made)));
    let reads = record.reads.iter().map(|read| (read.rev, true, read.operation.id, Step::Read(read)));
    let mut steps: Vec<_> = made.chain(reads).collect();
    steps.sort_by_key(|(rev, is_read, id, _)| (*rev, *is_read, *id));
    steps.into_iter().map(|(.., step)| step).collect()
}

/// Ends at the first fault: what follows from it says nothing more.
fn replay(record: &Record<'_>, opening: i64) -> Option<Finding> {
    let mut steps = steps(record).into_iter();
    let mut accounts = match steps.next()? {
        Step::Read(read) => match begins(read, opening) {
            None => read.accounts.clone(),
            found => return found,
        },
        Step::Made(made) => {
            let id = made.transfer.operation.id;
            let text = format!("transfer {id} has rev {}, before anybody can have read what it depends on", made.rev);
            return Some(Finding::new(text, [id]));
        }
    };
    steps.find_map(|step| match step {
        Step::Read(read) => look(read, &mut accounts, &record.unknown),
        Step::Made(made) => carry_out(made, &mut accounts),
    })
}

fn begins(read: &Read<'_>, opening: i64) -> Option<Finding> {
    if read.accounts.values().all(|account| account.balance == opening) {
        return None;
    }
    let Read { rev, accounts, .. } = read;
    let text = format!("the first read, at rev {rev}, shows {accounts:?}, where all begin with {opening}");
    Some(Finding::new(text, [read.operation.id]))
}

fn carry_out(made: &Made<'_>, accounts: &mut Accounts) -> Option<Finding> {
    let Made { transfer, rev, from, to } = made;
    let found = |text: String| Some(Finding::new(text, [transfer.operation.id]));
    let what = format!("transfer {} at rev {rev}", transfer.operation.id);
    let sides = [
        (transfer.from, transfer.from_rev, -transfer.amount, *from),
        (transfer.to, transfer.to_rev, transfer.amount, *to),
    ];
    for (name, mod_rev, change, answer) in sides {
        let Some(account) = accounts.get_mut(name) else { return found(format!("{what}: there is no {name:?}")) };
        if account.mod_rev != mod_rev {
            let is = account.mod_rev;
            return found(format!("{what} was made with account {name:?} at {mod_rev}, which was at {is}"));
        }
        let balance = account.balance + change;
        if balance != answer {
            return found(format!("{what} says that account {name:?} holds {answer}; it holds {balance}"));
        }
        *account = Account { balance, mod_rev: *rev };
    }
    None
}

/// Takes what a read shows and no answer has told for the work of transfers of unknown outcome, if it can be that.
fn look(read: &Read<'_>, accounts: &mut Accounts, unknown: &[Transfer<'_>]) -> Option<Finding> {
    let is_new = |name: &str, accounts: &Accounts| read.accounts.get(name) != accounts.get(name);
    for transfer in unknown {
        if is_new(transfer.from, accounts) && is_new(transfer.to, accounts) && explains(transfer, read, accounts) {
            for name in [transfer.from, transfer.to] {
                if let Some(shown) = read.accounts.get(name) {
                    accounts.insert(name.to_owned(), *shown);
                }
            }
        }
    }
    if read.accounts == *accounts {
        return None;
    }
    let (id, rev, shown) = (read.operation.id, read.rev, &read.accounts);
    let text = format!("read {id} at rev {rev} shows {shown:?}, where the transfers up to it make {accounts:?}");
    Some(Finding::new(text, [id]))
}

/// Whether the read shows both accounts as the transfer would have left them.
fn explains(transfer: &Transfer<'_>, read: &Read<'_>, accounts: &Accounts) -> bool {
    let sides = |accounts: &Accounts| Some((*accounts.get(transfer.from)?, *accounts.get(transfer.to)?));
    let (Some((from, to)), Some((new_from, new_to))) = (sides(accounts), sides(&read.accounts)) else { return false };
    let fits = (from.mod_rev, to.mod_rev) == (transfer.from_rev, transfer.to_rev);
    let is_left = new_from.balance == from.balance - transfer.amount && new_to.balance == to.balance + transfer.amount;
    let at = new_from.mod_rev;
    let is_one_place = at == new_to.mod_rev && at > from.mod_rev.max(to.mod_rev) && at <= read.rev;
    fits && is_left && is_one_place && transfer.operation.began_at < read.operation.ended_at
}

#[cfg(test)]
mod tests;
