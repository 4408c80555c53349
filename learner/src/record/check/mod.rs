//! Proves from a record, after the fact, that nothing was lost, trained twice or made up.
//!
//! The proof never asks the ledger that wrote the record: it derives the surviving line of commits from the log, counts every
//! seat from the ends of groups and the rows that are left, and compares the two with each other and with the counters.
//! Evidence that was folded is believed as far as its numbers go. One [`Invariant`] is one line of `folgore inspect --check`.

mod batches;
mod line;
mod seats;

use std::{collections::BTreeMap, fmt};

use folgore_protocol::PolicyId;
use serde::Serialize;

use super::{Evidence, Record, RecordError, Snapshot, evidence::Rules};
use line::Line;

/// Violations kept in words; further ones are only counted.
const TOLD_MAX: usize = 8;

/// One thing that must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Invariant {
    /// Its name.
    pub name: &'static str,
    /// What was looked at, with numbers.
    pub detail: String,
    /// Things looked at.
    pub checked: u64,
    /// Things that do not hold.
    pub violated: u64,
    /// The first of them, in words.
    pub violations: Vec<String>,
}

impl Invariant {
    /// Nothing looked at yet.
    pub fn new(name: &'static str) -> Self {
        Self { name, detail: String::new(), checked: 0, violated: 0, violations: Vec::new() }
    }

    /// True if nothing speaks against it.
    pub fn holds(&self) -> bool {
        self.violated == 0
    }

    /// Looks at one thing.
    pub fn expect(&mut self, holds: bool, say: impl FnOnce() -> String) {
        self.checked += 1;
        if !holds {
            self.violated += 1;
            if self.violations.len() < TOLD_MAX {
                self.violations.push(say());
            }
        }
    }

    fn equal<T: PartialEq + fmt::Debug>(&mut self, what: &str, rows: T, counted: T) {
        let holds = rows == counted;
        self.expect(holds, || format!("{what}: the rows say {rows:?}, the counters {counted:?}"));
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.holds() { "ok    " } else { "BROKEN" };
        write!(f, "{verdict}  {:<12} {}", self.name, self.detail)?;
        if !self.holds() {
            write!(f, "; {} of {} do not hold", self.violated, self.checked)?;
        }
        self.violations.iter().try_for_each(|violation| write!(f, "\n          {violation}"))
    }
}

/// What a record proves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Each invariant, in a fixed order.
    pub invariants: Vec<Invariant>,
    /// The surviving line: the policy of each committed step, where it is known.
    pub line: BTreeMap<u64, PolicyId>,
    /// The last step committed on it.
    pub committed_step: u64,
}

impl Report {
    /// True if every invariant holds.
    pub fn holds(&self) -> bool {
        self.invariants.iter().all(Invariant::holds)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.invariants.iter().try_for_each(|invariant| writeln!(f, "{invariant}"))
    }
}

/// Checks all that `record` holds.
pub fn check(record: &Record) -> Result<Report, RecordError> {
    let (snapshot, evidence) = (record.load()?, record.evidence()?);
    let books = Books { line: Line::of(&evidence), snapshot: &snapshot, evidence: &evidence };
    let invariants = vec![
        books.groups(),
        books.seats(),
        books.batches(),
        books.trained_once(),
        books.versions(),
        books.staleness(),
        books.trajectories(),
        books.counters(),
        books.evaluations(),
    ];
    Ok(Report { invariants, line: books.line.policies, committed_step: snapshot.counters.committed_step })
}

/// What is compared.
struct Books<'a> {
    snapshot: &'a Snapshot,
    evidence: &'a Evidence,
    line: Line,
}

impl Books<'_> {
    /// True if any rules that this run has had fit.
    fn any_rules(&self, fit: impl Fn(&Rules) -> bool) -> bool {
        self.snapshot.rules.iter().any(fit)
    }
}
