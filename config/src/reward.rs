//! `reward`: what scores a completion: a built-in rule, or a reward of the user's own, wherever it runs.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Problems;

/// Longest that a request to a reward may take, in seconds.
pub const MAX_TIMEOUT_S: f64 = 600.0;

/// One reward of the list `reward`. Where none of `command`, `python`, `url` and `judge` is set, `name` is that of a rule
/// which the executable holds; otherwise it is the user's name for the reward, which its part of the score bears.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardSpec {
    /// Name of the rule, or the user's name for the reward.
    pub name: String,
    /// Weight in the total.
    #[serde(default = "one")]
    pub weight: f64,
    /// Arguments of the rule, by name.
    #[serde(default)]
    pub args: Map<String, Value>,
    /// A program and its arguments: a child process that reads requests and writes replies, a line of JSON each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// `file.py:function`: a Python function as TRL calls it, `f(prompts, completions, **columns)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub python: Option<String>,
    /// Where requests are posted as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// A language model that judges by a rubric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<JudgeSpec>,
    /// What one request holds.
    #[serde(default, skip_serializing_if = "is_default_scope")]
    pub scope: RewardScope,
    /// Seconds for one attempt at a request. This and what follows concerns rewards of the user's own.
    #[serde(default = "timeout_s", skip_serializing_if = "is_default_timeout")]
    pub timeout_s: f64,
    /// Further attempts at a request whose failure may pass.
    #[serde(default = "retries", skip_serializing_if = "is_default_retries")]
    pub retries: u32,
    /// Requests at once.
    #[serde(default = "concurrency", skip_serializing_if = "is_default_concurrency")]
    pub concurrency: u32,
    /// Failures in a row after which the reward is left alone.
    #[serde(default = "breaker_failures", skip_serializing_if = "is_default_breaker_failures")]
    pub breaker_failures: u32,
    /// Seconds that it is left alone before it is tried again.
    #[serde(default = "breaker_pause_s", skip_serializing_if = "is_default_breaker_pause")]
    pub breaker_pause_s: f64,
}

/// What one request to a reward holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardScope {
    /// Any completions: each is judged by itself.
    #[default]
    Sample,
    /// All completions of one question: they are judged against each other.
    Group,
}

/// A language model that judges, behind an API like OpenAI's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeSpec {
    /// Address of the API, with its version: `http://host:port/v1`.
    pub base_url: String,
    /// Name of the model there.
    pub model: String,
    /// What a good completion is.
    pub rubric: String,
    /// The score of the best completion; what the judge gives is divided by it.
    #[serde(default = "max_score")]
    pub max_score: f64,
    /// The variable of the environment that holds the key of the API; none: no key is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// A file that keeps verdicts for later runs; none: they are kept in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
}

/// How a reward is reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RewardWay<'a> {
    /// The executable holds it, by its name.
    Held,
    /// A program with its arguments.
    Command(&'a [String]),
    /// A file and a function.
    Python(&'a str, &'a str),
    /// An address.
    Url(&'a str),
    /// A language model.
    Judge(&'a JudgeSpec),
}

fn one() -> f64 {
    1.0
}

fn max_score() -> f64 {
    10.0
}

fn timeout_s() -> f64 {
    60.0
}

fn retries() -> u32 {
    2
}

fn concurrency() -> u32 {
    4
}

fn breaker_failures() -> u32 {
    8
}

fn breaker_pause_s() -> f64 {
    30.0
}

// What a built-in rule has no use for stays out of the resolved form.
fn is_default_scope(got: &RewardScope) -> bool {
    *got == RewardScope::default()
}

fn is_default_timeout(got: &f64) -> bool {
    *got == timeout_s()
}

fn is_default_retries(got: &u32) -> bool {
    *got == retries()
}

fn is_default_concurrency(got: &u32) -> bool {
    *got == concurrency()
}

fn is_default_breaker_failures(got: &u32) -> bool {
    *got == breaker_failures()
}

fn is_default_breaker_pause(got: &f64) -> bool {
    *got == breaker_pause_s()
}

impl RewardSpec {
    /// The reward that the executable holds as `name`, with weight 1 and without arguments.
    pub fn held(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            weight: one(),
            args: Map::new(),
            command: None,
            python: None,
            url: None,
            judge: None,
            scope: RewardScope::default(),
            timeout_s: timeout_s(),
            retries: retries(),
            concurrency: concurrency(),
            breaker_failures: breaker_failures(),
            breaker_pause_s: breaker_pause_s(),
        }
    }

    /// How the reward is reached; [`RewardSpec::check`] sees to it that there is one way only.
    pub fn way(&self) -> RewardWay<'_> {
        if let Some(command) = &self.command {
            RewardWay::Command(command)
        } else if let Some(python) = &self.python {
            let (file, function) = python.rsplit_once(':').unwrap_or((python, ""));
            RewardWay::Python(file, function)
        } else if let Some(url) = &self.url {
            RewardWay::Url(url)
        } else if let Some(judge) = &self.judge {
            RewardWay::Judge(judge)
        } else {
            RewardWay::Held
        }
    }

    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        p.expect(!self.name.is_empty(), "name", "a name", "an empty text");
        p.expect(self.weight.is_finite(), "weight", "a finite number", self.weight);
        self.check_way(p);
        p.range("timeout_s", 0.001, MAX_TIMEOUT_S, self.timeout_s);
        p.range("retries", 0.0, 20.0, f64::from(self.retries));
        p.range("concurrency", 1.0, 1024.0, f64::from(self.concurrency));
        p.range("breaker_failures", 1.0, 1e6, f64::from(self.breaker_failures));
        p.range("breaker_pause_s", 0.0, 3600.0, self.breaker_pause_s);
    }

    fn check_way(&self, p: &mut Problems) {
        let ways = [
            ("command", self.command.is_some()),
            ("python", self.python.is_some()),
            ("url", self.url.is_some()),
            ("judge", self.judge.is_some()),
        ];
        let mut set = ways.iter().filter(|(_, set)| *set).map(|(key, _)| *key);
        if let Some(first) = set.next() {
            for other in set {
                p.expect(false, other, format!("none beside {first}: a reward is reached in one way"), "a value");
            }
            let args = self.args.len();
            p.expect(args == 0, "args", format!("none beside {first}: they are for built-in rules"), args);
        }
        match self.way() {
            RewardWay::Held => {}
            RewardWay::Command(argv) => {
                let program = argv.first().map_or("", String::as_str);
                p.expect(!program.is_empty(), "command", "a program and its arguments", "no program");
            }
            RewardWay::Python(file, function) => {
                let name = |c: char| c.is_alphanumeric() || c == '_';
                let ok = file.ends_with(".py") && !function.is_empty() && function.chars().all(name);
                let got = self.python.as_deref().unwrap_or_default();
                p.expect(ok, "python", "file.py:function", got);
            }
            RewardWay::Url(url) => check_url("url", url, p),
            RewardWay::Judge(judge) => {
                check_url("judge.base_url", &judge.base_url, p);
                p.expect(!judge.model.is_empty(), "judge.model", "the name of a model", "an empty text");
                p.expect(!judge.rubric.trim().is_empty(), "judge.rubric", "what a good completion is", "an empty text");
                let positive = judge.max_score.is_finite() && judge.max_score > 0.0;
                p.expect(positive, "judge.max_score", "a number above 0", judge.max_score);
                let sample = self.scope == RewardScope::Sample;
                p.expect(sample, "scope", "sample: a judge is asked about one completion at a time", "group");
            }
        }
    }
}

fn check_url(key: &str, url: &str, p: &mut Problems) {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let ok = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
    p.expect(ok, key, "http://host or https://host", url);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(json: &str) -> Vec<String> {
        let spec: RewardSpec = serde_json::from_str(json).unwrap();
        let mut p = Problems::default();
        spec.check(&mut p);
        p.errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_way_is_read_and_a_second_one_refused() {
        for (json, way) in [
            (r#"{"name": "numeric"}"#, RewardWay::Held),
            (r#"{"name": "n", "command": ["a", "b"]}"#, RewardWay::Command(&["a".into(), "b".into()])),
            (r#"{"name": "n", "python": "c:d/r.py:f"}"#, RewardWay::Python("c:d/r.py", "f")),
            (r#"{"name": "n", "url": "http://localhost:1/x"}"#, RewardWay::Url("http://localhost:1/x")),
        ] {
            let spec: RewardSpec = serde_json::from_str(json).unwrap();
            assert_eq!(spec.way(), way);
            assert_eq!(problems(json), [""; 0], "{json}");
        }
        let two = problems(r#"{"name": "n", "command": ["a"], "url": "http://h"}"#);
        assert_eq!(two, ["url: expected none beside command: a reward is reached in one way, got a value"]);
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_key() {
        for (more, want) in [
            (r#""command": []"#, "command: expected a program"),
            (r#""command": [""]"#, "command: expected a program"),
            (r#""python": "reward.py""#, "python: expected file.py:function, got reward.py"),
            (r#""python": "reward.py:f()""#, "python: expected file.py:function"),
            (r#""url": "localhost:8000""#, "url: expected http://host"),
            (r#""url": "https:///x""#, "url: expected http://host"),
            (r#""url": "http://h", "args": {"x": 1}"#, "args: expected none beside url"),
            (r#""judge": {"base_url": "h", "model": "m", "rubric": "r"}"#, "judge.base_url: expected http"),
            (r#""judge": {"base_url": "http://h", "model": "m", "rubric": " "}"#, "judge.rubric: expected"),
            (
                r#""judge": {"base_url": "http://h", "model": "m", "rubric": "r", "max_score": 0}"#,
                "judge.max_score: expected a number above 0",
            ),
            (r#""timeout_s": 0"#, "timeout_s: expected 0.001 to 600"),
            (r#""retries": 21"#, "retries: expected 0 to 20"),
            (r#""concurrency": 0"#, "concurrency: expected 1 to"),
            (r#""breaker_failures": 0"#, "breaker_failures: expected 1 to"),
            (r#""breaker_pause_s": -1"#, "breaker_pause_s: expected 0 to"),
        ] {
            let got = problems(&format!(r#"{{"name": "n", {more}}}"#));
            assert!(got.len() == 1 && got[0].starts_with(want), "{more}: {got:?}");
        }
    }

    #[test]
    fn a_built_in_rule_is_written_as_short_as_it_was_read() {
        let written = serde_json::to_string(&RewardSpec::held("numeric")).unwrap();
        assert_eq!(written, r#"{"name":"numeric","weight":1.0,"args":{}}"#);
        let full = r#"{"name":"n","weight":1.0,"args":{},"url":"http://h","scope":"group","retries":0}"#;
        assert_eq!(serde_json::to_string(&serde_json::from_str::<RewardSpec>(full).unwrap()).unwrap(), full);
    }
}
