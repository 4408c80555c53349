//! `log`: what is shown and what is written beside the metrics, which are always written.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::Problems;

/// The section `log`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSection {
    /// Prints a line after every so many steps; every step is in `metrics.jsonl`.
    pub logging_steps: u32,
    /// Shows a sample now and then.
    pub log_completions: bool,
    /// Steps between the samples shown.
    pub log_completions_steps: u32,
    /// Writes `report.html` at the end.
    pub report: bool,
    /// Writes TensorBoard event files into `tb` in the run's folder.
    pub tensorboard: bool,
    /// Port at which Prometheus reads `/metrics` of the head; 0 is any that is free. Off without it.
    pub metrics_port: Option<u16>,
    /// Address of that port; nobody else's machine can read it unless this says so.
    pub metrics_address: IpAddr,
    /// Puts the text of prompts and completions into OpenTelemetry spans, too.
    pub otel_content: bool,
}

impl Default for LogSection {
    fn default() -> Self {
        Self {
            logging_steps: 1,
            log_completions: true,
            log_completions_steps: 10,
            report: true,
            tensorboard: false,
            metrics_port: None,
            metrics_address: Ipv4Addr::LOCALHOST.into(),
            otel_content: false,
        }
    }
}

impl LogSection {
    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        p.expect(self.logging_steps > 0, "logging_steps", "at least 1", self.logging_steps);
        p.expect(self.log_completions_steps > 0, "log_completions_steps", "at least 1", self.log_completions_steps);
    }
}
