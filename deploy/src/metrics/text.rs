//! Prometheus' text format, version 0.0.4.

use std::fmt::Write as _;

use folgore_actors::metrics::{Kind, Sample};

use super::table::TABLE;

/// What the text is, for HTTP.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `samples` as text; they are in the order of the table.
pub fn encode(samples: &[Sample]) -> String {
    let mut text = String::new();
    for of_one in samples.chunk_by(|a, b| a.metric == b.metric) {
        let metric = &TABLE[of_one[0].metric].metric;
        let kind = match metric.kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
        };
        let _ = writeln!(text, "# HELP {} {}\n# TYPE {} {kind}", metric.name, escaped(metric.help), metric.name);
        for sample in of_one {
            let labels: Vec<String> =
                sample.labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
            let _ = writeln!(text, "{}{{{}}} {}", metric.name, labels.join(","), number(sample.value));
        }
    }
    text
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn number(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".into(),
        f64::NEG_INFINITY => "-Inf".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_metric_are_together_and_labels_cannot_break_a_line() {
        let sample = |metric, label: &str, value| Sample { metric, labels: vec![("run", label.into())], value };
        let text = encode(&[sample(1, "a", 0.1), sample(1, "b\"\\\n", f64::NAN), sample(2, "a", f64::INFINITY)]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "# HELP folgore_reward Mean reward of the step's samples");
        assert_eq!(
            lines[1..4],
            [
                "# TYPE folgore_reward gauge",
                "folgore_reward{run=\"a\"} 0.1",
                "folgore_reward{run=\"b\\\"\\\\\\n\"} NaN"
            ]
        );
        assert_eq!(lines[6], "folgore_reward_std{run=\"a\"} +Inf");
        assert_eq!(lines.len(), 7);
    }
}
