//! Several who are told how a run goes, in order.

use std::{path::Path, sync::Arc};

use folgore_learner::{alarm::Alarm, evaluation::Evaluated, learner::Witness};
use folgore_protocol::Batch;
use serde_json::{Map, Value};

/// Tells each of them the same.
pub struct Witnesses(pub Vec<Arc<dyn Witness>>);

impl Witness for Witnesses {
    fn goes_on(&self, step: u64) {
        self.0.iter().for_each(|w| w.goes_on(step));
    }

    fn stepped(&self, step: u64, line: &Map<String, Value>, batch: &Batch) {
        self.0.iter().for_each(|w| w.stepped(step, line, batch));
    }

    fn evaluated(&self, evaluated: &Evaluated) {
        self.0.iter().for_each(|w| w.evaluated(evaluated));
    }

    fn saved(&self, step: u64, path: &Path) {
        self.0.iter().for_each(|w| w.saved(step, path));
    }

    fn waiting(&self, reason: &str) {
        self.0.iter().for_each(|w| w.waiting(reason));
    }

    fn alarm(&self, alarm: &Alarm) {
        self.0.iter().for_each(|w| w.alarm(alarm));
    }
}
