//! What was measured, for programs and for people.

use std::{collections::BTreeMap, fmt};

use folgore_model::backend::Isa;
use serde::Serialize;
use serde_json::Value;

use super::{
    ceiling::Ceilings,
    cost::Call,
    meter::{Around, peak_memory, round},
};
use crate::{cli::bench::BenchArgs, summary::Hardware};

/// One measurement.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What, for people.
    pub name: String,
    /// Its sizes.
    pub config: Value,
    /// Tokens of one run.
    pub tokens: f64,
    /// Seconds of every run.
    pub seconds: Vec<f64>,
    /// What one run has to compute, call by call.
    pub work: Vec<Call>,
    /// Other numbers of the best run.
    pub detail: BTreeMap<String, f64>,
    /// Memory and noise.
    pub around: Around,
}

impl Measured {
    /// A measurement that nothing is known of yet.
    pub fn new(name: impl Into<String>, config: Value) -> Self {
        Self {
            name: name.into(),
            config,
            tokens: 0.0,
            seconds: Vec::new(),
            work: Vec::new(),
            detail: BTreeMap::new(),
            around: Around::default(),
        }
    }

    /// Seconds of the best run.
    pub fn best(&self) -> f64 {
        self.seconds.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// A measurement against the ceilings.
#[derive(Clone, Debug, Serialize)]
struct Line {
    name: String,
    config: Value,
    tokens_per_s: f64,
    best_s: f64,
    seconds: Vec<f64>,
    gflops: f64,
    gbps: f64,
    /// Least seconds that the ceilings allow, divided by the seconds taken.
    share_of_ceiling: f64,
    /// The ceiling that most of those seconds belong to: `gemm` or `read`.
    ceiling: &'static str,
    detail: BTreeMap<String, f64>,
    #[serde(flatten)]
    around: Around,
}

impl Line {
    fn of(m: Measured, ceilings: &Ceilings) -> Self {
        let best = m.best();
        let sum = |of: fn(&Call) -> f64| m.work.iter().map(of).sum::<f64>();
        let least: f64 = m.work.iter().map(|call| call.seconds(ceilings)).sum();
        let arithmetic: f64 =
            m.work.iter().filter(|call| call.is_arithmetic(ceilings)).map(|call| call.seconds(ceilings)).sum();
        Self {
            tokens_per_s: round(m.tokens / best, 1),
            best_s: round(best, 4),
            seconds: m.seconds.iter().map(|s| round(*s, 4)).collect(),
            gflops: round(sum(|call| call.flops) / best / 1e9, 1),
            gbps: round(sum(|call| call.bytes) / best / 1e9, 2),
            share_of_ceiling: round(least / best, 3),
            ceiling: if 2.0 * arithmetic >= least { "gemm" } else { "read" },
            detail: m.detail.into_iter().map(|(name, value)| (name, round(value, 4))).collect(),
            name: m.name,
            config: m.config,
            around: m.around,
        }
    }
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    folgore: &'static str,
    model: String,
    threads: usize,
    isa: &'static str,
    hardware: Hardware,
    ceilings: Ceilings,
    ceilings_before: Ceilings,
    ceilings_after: Ceilings,
    results: Vec<Line>,
    /// Of the whole process, in MiB, except what a measurement of its own shows.
    peak_memory_mib: Option<f64>,
}

impl Report {
    /// Sets `results` against the better of two measurements of the ceilings.
    pub fn new(args: &BenchArgs, before: Ceilings, after: Ceilings, results: Vec<Measured>) -> Self {
        let ceilings = before.best(after);
        let peak = results.iter().filter_map(|m| m.around.peak_memory_mib);
        let now = peak_memory().map(|bytes| round(bytes as f64 / 1024.0 / 1024.0, 1));
        Self {
            folgore: env!("CARGO_PKG_VERSION"),
            model: args.model.clone(),
            threads: args.threads,
            isa: Isa::best().name(),
            hardware: Hardware::gather(),
            ceilings,
            ceilings_before: before,
            ceilings_after: after,
            peak_memory_mib: peak.chain(now).reduce(f64::max),
            results: results.into_iter().map(|m| Line::of(m, &ceilings)).collect(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.ceilings;
        writeln!(f, "{}", self.hardware)?;
        writeln!(f, "{}, f32, {} threads, {} kernels\n", self.model, self.threads, self.isa)?;
        writeln!(f, "ceilings (best of five)        {:>8} threads   1 thread", self.threads)?;
        let pair = |f: &mut fmt::Formatter<'_>, name: &str, all: f64, one: f64, unit: &str| {
            writeln!(f, "  {name:<28} {all:>8.1} {unit:<9} {one:>8.1} {unit}")
        };
        pair(f, "product of 2048 x 2048", c.gemm_gflops, c.gemm_gflops_1_thread, "GFLOP/s")?;
        pair(f, "reading 512 MiB", c.read_gbps, c.read_gbps_1_thread, "GB/s")?;
        if !self.results.is_empty() {
            writeln!(
                f,
                "\n{:<22} {:>10} {:>9} {:>9} {:>7} {:>17} {:>10}",
                "", "tokens/s", "seconds", "GFLOP/s", "GB/s", "share of ceiling", "peak MiB"
            )?;
        }
        for line in &self.results {
            let share = format!("{:.0}% of {}", 100.0 * line.share_of_ceiling, line.ceiling);
            let peak = line.around.peak_memory_mib.map_or_else(|| "?".into(), |mib| format!("{mib:.0}"));
            writeln!(
                f,
                "{:<22} {:>10.1} {:>9.3} {:>9.1} {:>7.2} {share:>17} {peak:>10}",
                line.name, line.tokens_per_s, line.best_s, line.gflops, line.gbps
            )?;
            let shown = line.detail.iter().filter(|(name, _)| name.ends_with("_s"));
            let parts: Vec<String> = shown.map(|(name, value)| format!("{name} {value:.3}")).collect();
            writeln!(f, "    {}", parts.join("  "))?;
        }
        let busy = |line: &&Line| line.around.other_cores.is_some_and(|cores| cores > 0.2);
        if let Some(line) = self.results.iter().find(busy) {
            let cores = line.around.other_cores.unwrap_or_default();
            writeln!(f, "\nOthers kept {cores:.1} cores busy meanwhile ({}): these are lower bounds.", line.name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_time_that_the_ceilings_allow() {
        let ceilings =
            Ceilings { gemm_gflops: 100.0, gemm_gflops_1_thread: 50.0, read_gbps: 10.0, read_gbps_1_thread: 8.0 };
        let mut measured = Measured::new("decode", Value::Null);
        measured.tokens = 30.0;
        measured.seconds = vec![1.0, 0.5];
        // 0.1 s of reading and 0.05 s of arithmetic
        measured.work = vec![Call { flops: 2e9, bytes: 1e9 }, Call { flops: 5e9, bytes: 1e8 }];
        let line = Line::of(measured, &ceilings);
        assert_eq!((line.tokens_per_s, line.share_of_ceiling, line.ceiling), (60.0, 0.3, "read"));
        assert_eq!((line.gflops, line.gbps), (14.0, 2.2));
    }
}
