//! Procedures as a policy reads them.

use std::fmt::Write as _;

use super::Procedure;

/// Procedures written down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The text; empty where nothing fits.
    pub text: String,
    /// Procedures in it.
    pub procedures: usize,
    /// Steps left out of the last of them.
    pub left_out: usize,
}

/// Writes down `procedures`, best first, in at most `budget` tokens, as `count` counts them: whole procedures, then the last as far as
/// its steps fit, with a line that says how many are left out. A step is never cut, and a procedure without any step is not told. What
/// comes after a procedure that does not fit whole is left out, however short it is: it fits worse.
pub fn told(procedures: &[&Procedure], budget: usize, count: impl Fn(&str) -> usize) -> Told {
    let mut best = Told::default();
    for (i, procedure) in procedures.iter().enumerate() {
        let written = |steps: usize| {
            let left_out = procedure.steps.len() - steps;
            let gap = if i == 0 { "" } else { "\n\n" };
            let text = format!("{}{gap}{}", best.text, one(procedure, steps));
            Told { text, procedures: i + 1, left_out }
        };
        // tokens of a longer text may be fewer, so each length is tried, and what is told was counted
        let fits = (1..=procedure.steps.len()).rev().map(written).find(|told| count(&told.text) <= budget);
        match fits {
            None => break,
            Some(told) => best = told,
        }
        if best.left_out > 0 {
            break;
        }
    }
    best
}

/// The first `steps` of a procedure.
fn one(procedure: &Procedure, steps: usize) -> String {
    let mut text = format!("Follow this procedure: {}", procedure.name);
    if !procedure.when.is_empty() {
        let _ = write!(text, "\nWhen: {}", procedure.when);
    }
    for (i, step) in procedure.steps[..steps].iter().enumerate() {
        let _ = write!(text, "\n{}. {}", i + 1, step.action);
        if !step.expect.is_empty() {
            let _ = write!(text, "\n   Expected: {}", step.expect);
        }
    }
    match procedure.steps.len() - steps {
        0 => {}
        1 => text.push_str("\n(Shortened by 1 step.)"),
        n => {
            let _ = write!(text, "\n(Shortened by {n} steps.)");
        }
    }
    text
}
