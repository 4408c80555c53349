//! Values for the table: the last step's line, the last evaluation, and what each service of this process shows of itself.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use folgore_actors::{Observed, Telemetry, metrics::Sample};
use folgore_learner::{alarm::Alarm, evaluation::Evaluated, learner::Witness};
use folgore_protocol::Batch;
use serde_json::{Map, Value};

use super::table::{Origin, TABLE};
use crate::{cluster::BUILD, summary::Evaluation};

/// Values of a label that a metric has at most; further ones are summed up as [`OTHER`].
const LABELS_MAX: usize = 32;
/// The label of what is beyond [`LABELS_MAX`].
const OTHER: &str = "other";

/// Gathers what a process shows.
pub struct Collector {
    /// Labels of everything: the run, and what the process does in it.
    whose: [(&'static str, String); 2],
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    line: Map<String, Value>,
    last_step: Option<SystemTime>,
    evaluation: Option<Evaluation>,
    services: Vec<Observed>,
    epoch: Option<u32>,
}

impl Collector {
    /// For a process that does `role` in `run`.
    pub fn new(run: &str, role: &str) -> Self {
        Self { whose: [("run", run.to_owned()), ("role", role.to_owned())], seen: Mutex::default() }
    }

    /// Notes the epoch under which this head writes.
    pub fn epoch(&self, epoch: u32) {
        self.seen().epoch = Some(epoch);
    }

    /// Notes the line of a step.
    fn line(&self, line: &Map<String, Value>) {
        let mut seen = self.seen();
        seen.line = line.clone();
        seen.last_step = Some(SystemTime::now());
    }

    /// Notes what the services show.
    pub fn observed(&self, services: Vec<Observed>) {
        self.seen().services = services;
    }

    /// All values that there are, in the order of the table.
    pub fn read(&self) -> Vec<Sample> {
        let seen = self.seen();
        let mut samples = Vec::new();
        for (metric, row) in TABLE.iter().enumerate() {
            for (label, from) in &row.sources {
                for (own, value) in bounded(seen.values(from)) {
                    let mut labels = self.whose.to_vec();
                    labels.extend(label.map(|(name, value)| (name, value.to_owned())));
                    labels.extend(own);
                    samples.push(Sample { metric, labels, value });
                }
            }
        }
        samples
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Witness for Collector {
    fn goes_on(&self, _: u64) {}

    fn stepped(&self, _: u64, line: &Map<String, Value>, _: &Batch) {
        self.line(line);
    }

    fn evaluated(&self, evaluated: &Evaluated) {
        self.seen().evaluation = Some(evaluated.into());
    }

    fn saved(&self, _: u64, _: &Path) {}

    fn waiting(&self, _: &str) {}

    fn alarm(&self, _: &Alarm) {}
}

/// A value with the label that tells it from others of its source.
type Own = (Option<(&'static str, String)>, f64);

/// At most [`LABELS_MAX`] values; the rest is one.
fn bounded(mut values: Vec<Own>) -> Vec<Own> {
    if values.len() > LABELS_MAX {
        let rest: f64 = values[LABELS_MAX - 1..].iter().map(|(_, value)| value).sum();
        let name = values[0].0.as_ref().map_or("name", |(name, _)| name);
        values.truncate(LABELS_MAX - 1);
        values.push((Some((name, OTHER.to_owned())), rest));
    }
    values
}

impl Seen {
    fn values(&self, from: &Origin) -> Vec<Own> {
        let one = |value: Option<f64>| value.map(|value| (None, value)).into_iter().collect();
        match *from {
            Origin::Line(key) => one(self.line(key)),
            Origin::Share(part, whole) => {
                one(self.line(part).zip(self.line(whole)).filter(|(_, w)| *w > 0.0).map(|(p, w)| p / w))
            }
            Origin::Rules(what) => self.rules(what),
            Origin::Eval(what) => self.evaluated(what),
            Origin::EvalAt(what) => self.estimates(what),
            Origin::Status(service, at) => one(self.status(service, at).and_then(number)),
            Origin::Sum(service, at) => one(self.status(service, at).map(|value| named(value).values().sum())),
            Origin::Length(service, at) => {
                one(self.status(service, at).and_then(Value::as_array).map(|list| list.len() as f64))
            }
            Origin::Names(service, at, label) => {
                let named = self.status(service, at).map(named).unwrap_or_default();
                named.into_iter().map(|(name, value)| (Some((label, name)), value)).collect()
            }
            Origin::Text(service, at, label) => {
                let text = self.status(service, at).and_then(Value::as_str);
                text.map(|text| (Some((label, text.to_owned())), 1.0)).into_iter().collect()
            }
            Origin::Process(what) => self.process(what),
            Origin::Restarts => {
                let of = |service: &Observed| (Some(("service", service.name.clone())), f64::from(service.restarts));
                self.services.iter().map(of).collect()
            }
        }
    }

    fn line(&self, key: &str) -> Option<f64> {
        self.line.get(key)?.as_f64()
    }

    fn rules(&self, what: &str) -> Vec<Own> {
        let of = |(key, value): (&String, &Value)| {
            let rule = key.strip_prefix("rewards/")?.strip_suffix(what)?.strip_suffix('/')?;
            Some((Some(("rule", rule.to_owned())), value.as_f64()?))
        };
        self.line.iter().filter_map(of).collect()
    }

    /// pass@k or maj@k of the sampled answers; each k is a label.
    fn estimates(&self, what: &str) -> Vec<Own> {
        let measured = self.evaluation.as_ref().and_then(|e| e.sampled.as_ref());
        let by_k = measured.map(|m| if what == "pass" { &m.estimates.pass } else { &m.estimates.maj });
        by_k.into_iter().flatten().map(|(k, e)| (Some(("k", k.to_string())), e.value)).collect()
    }

    fn evaluated(&self, what: &str) -> Vec<Own> {
        let Some(evaluation) = &self.evaluation else { return Vec::new() };
        let ways = [("greedy", &evaluation.greedy), ("sampled", &evaluation.sampled)];
        let of = |(way, measured): (&str, &Option<crate::summary::Measured>)| {
            let m = measured.as_ref()?;
            let value = match what {
                "accuracy" => m.accuracy,
                "mean_reward" => m.mean_reward,
                _ => m.any_correct,
            };
            Some((Some(("kind", way.to_owned())), value?))
        };
        ways.into_iter().filter_map(of).collect()
    }

    fn status(&self, service: &str, at: &str) -> Option<&Value> {
        self.services.iter().find(|s| s.name == service)?.status.pointer(at)
    }

    fn process(&self, what: &str) -> Vec<Own> {
        let since_1970 = |time: SystemTime| time.duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs_f64());
        let (label, value) = match what {
            "build" => (Some(("version", BUILD.to_owned())), Some(1.0)),
            "epoch" => (None, self.epoch.map(f64::from)),
            "spans_taken" => (None, Telemetry::spans().map(|spans| spans.exported as f64)),
            "spans_missing" => (None, Telemetry::spans().map(|spans| spans.lost as f64)),
            "last_step_time" => (None, self.last_step.and_then(since_1970)),
            _ => (None, self.evaluation.as_ref().map(|e| e.step as f64)),
        };
        value.map(|value| (label, value)).into_iter().collect()
    }
}

/// A number, or a truth as 0 and 1.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_bool().map(|truth| f64::from(u8::from(truth))))
}

/// The names and numbers of an object, or of a list of pairs; in the order of the names, so that the same are shown each time.
fn named(value: &Value) -> BTreeMap<String, f64> {
    let pair = |pair: &Value| Some((pair.get(0)?.as_str()?.to_owned(), number(pair.get(1)?)?));
    match value {
        Value::Array(pairs) => pairs.iter().filter_map(pair).collect(),
        Value::Object(fields) => fields.iter().filter_map(|(k, v)| Some((k.clone(), number(v)?))).collect(),
        _ => BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use folgore_actors::ChildState;
    use serde_json::json;

    use super::*;

    fn of(collector: &Collector, name: &str) -> Vec<(Vec<(&'static str, String)>, f64)> {
        let at = TABLE.iter().position(|row| row.metric.name == name).unwrap_or_else(|| panic!("no metric {name}"));
        let samples = collector.read().into_iter().filter(|s| s.metric == at);
        samples.map(|s| (s.labels[2..].to_vec(), s.value)).collect()
    }

    fn service(name: &str, status: Value) -> Observed {
        Observed { name: name.into(), state: ChildState::Running, restarts: 2, status }
    }

    #[test]
    fn values_come_from_the_line_and_from_what_services_show() {
        let collector = Collector::new("demo", "head");
        let shown: Vec<String> = collector.read().iter().map(|s| TABLE[s.metric].metric.name.clone()).collect();
        assert_eq!(shown, ["folgore_build_info"], "nothing is made up before there is something to show");
        let line = json!({"step": 3, "reward": 0.5, "loss": null, "rewards/a/b/mean": 0.25, "step_time": 4.0, "time/generate": 1.0});
        collector.line(line.as_object().unwrap());
        collector.observed(vec![
            service("replay", json!({"refused": [["late", 3], ["forged", 1]], "strikes": [["w1", 2], ["w2", 1]], "quarantined": ["w9"]})),
            service("coordinator", json!({"jobs_waiting": 7, "paused": true})),
            service("watchdog", json!({"stage": "rollout"})),
        ]);
        let label = |name, value: &str| vec![(name, value.to_owned())];
        assert_eq!(of(&collector, "folgore_reward"), [(vec![], 0.5)]);
        assert_eq!(of(&collector, "folgore_loss"), [], "what is no number is not there");
        assert_eq!(of(&collector, "folgore_rewards_mean"), [(label("rule", "a/b"), 0.25)]);
        assert_eq!(of(&collector, "folgore_idle_learner"), [(vec![], 0.25)]);
        assert_eq!(of(&collector, "folgore_queue_waiting"), [(label("queue", "jobs"), 7.0)]);
        assert_eq!(of(&collector, "folgore_jobs_paused"), [(vec![], 1.0)]);
        assert_eq!(
            of(&collector, "folgore_replay_refused_total"),
            [(label("reason", "forged"), 1.0), (label("reason", "late"), 3.0)]
        );
        assert_eq!(of(&collector, "folgore_replay_strikes"), [(vec![], 3.0)]);
        assert_eq!(of(&collector, "folgore_replay_quarantined"), [(vec![], 1.0)]);
        assert_eq!(of(&collector, "folgore_held_up"), [(label("stage", "rollout"), 1.0)]);
        assert_eq!(of(&collector, "folgore_service_restarts_total").len(), 3);
    }

    #[test]
    fn labels_are_bounded_and_nothing_is_lost_of_the_sum() {
        let collector = Collector::new("demo", "head");
        let refused: Map<String, Value> = (0..1000).map(|i| (format!("reason {i}"), json!(1))).collect();
        collector.observed(vec![service("replay", json!({ "refused": refused }))]);
        let shown = of(&collector, "folgore_replay_refused_total");
        assert_eq!(shown.len(), LABELS_MAX);
        assert_eq!(shown.iter().map(|(_, value)| value).sum::<f64>(), 1000.0);
        assert_eq!(shown.last().unwrap().0, [("reason", OTHER.to_owned())]);
    }
}
