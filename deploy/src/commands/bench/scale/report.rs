//! What was measured, for programs and for people.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use crate::{cli::bench::ScaleArgs, commands::bench::meter::round, summary::Hardware};

/// Most and middle of some times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// How many.
    pub count: usize,
    /// The middle one.
    pub median: f64,
    /// The largest.
    pub worst: f64,
}

impl Spread {
    /// Of `values`.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let median = values.get(values.len() / 2).copied().unwrap_or_default();
        Self { count: values.len(), median: round(median, 4), worst: round(values.last().copied().unwrap_or(0.0), 4) }
    }
}

/// Resident memory over the window, in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// When it began.
    pub from: f64,
    /// When it ended.
    pub to: f64,
    /// Growth a minute: the line of least squares.
    pub slope_per_min: f64,
}

impl Memory {
    /// Of `seen`: seconds and MiB. None without two looks.
    pub fn of(seen: &[(f64, f64)]) -> Option<Self> {
        let (first, last) = (seen.first()?, seen.last()?);
        let n = seen.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| seen.iter().map(of).sum::<f64>() / n;
        let (t, m) = (mean(|s| s.0), mean(|s| s.1));
        let spread: f64 = seen.iter().map(|s| (s.0 - t).powi(2)).sum();
        let slope = seen.iter().map(|s| (s.0 - t) * (s.1 - m)).sum::<f64>() / spread;
        let slope_per_min = round(60.0 * slope, 2);
        (spread > 0.0).then(|| Self { from: round(first.1, 1), to: round(last.1, 1), slope_per_min })
    }
}

/// One configuration.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Worker processes.
    pub processes: u32,
    /// Slots of each.
    pub slots: u32,
    /// Hosts: caches of policies.
    pub hosts: u32,
    /// Seats of a step.
    pub seats_of_a_step: u32,
    /// Seconds measured.
    pub seconds: f64,
    /// Samples taken into the record in that time.
    pub samples: u64,
    /// Steps committed in that time.
    pub steps: u64,
    /// Mean of the times that these samples slept.
    pub mean_drawn_s: f64,
    /// What replay refused since the beginning, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Events not heard.
    pub events_missed: u64,
    /// From the announcement of a policy until the last process serves it.
    pub served_s: Spread,
    /// From the first byte put until the announcement.
    pub upload_s: Spread,
    /// Rate of plain gets beforehand.
    pub wire_mb_s: f64,
    /// Bytes x hosts over that rate.
    pub bound_s: f64,
    /// Memory of the head.
    pub head_memory: Option<Memory>,
    /// Largest memory of a worker process, in MiB.
    pub worker_mib: Option<f64>,
    /// Cores kept busy by the head.
    pub head_cores: Option<f64>,
    /// By the server.
    pub server_cores: Option<f64>,
    /// By all workers.
    pub workers_cores: Option<f64>,
    /// By others.
    pub other_cores: Option<f64>,
}

impl Line {
    fn per_s(&self) -> f64 {
        self.samples as f64 / self.seconds
    }

    fn ideal_per_s(&self) -> f64 {
        f64::from(self.processes * self.slots) / self.mean_drawn_s
    }
}

/// With the figures that follow from the others.
#[derive(Clone, Debug, Serialize)]
struct Full {
    #[serde(flatten)]
    line: Line,
    samples_per_s: f64,
    ideal_per_s: f64,
    efficiency: f64,
    /// Publish to served over its bound.
    served_share: f64,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    folgore: &'static str,
    hardware: Hardware,
    mean_s: f64,
    sigma: f64,
    adapter_mb: f64,
    wire_readers: &'static str,
    lines: Vec<Full>,
}

impl Report {
    /// Of `lines`, measured as `args` said.
    pub fn new(args: &ScaleArgs, lines: Vec<Line>) -> Self {
        let full = |line: Line| Full {
            samples_per_s: round(line.per_s(), 3),
            ideal_per_s: round(line.ideal_per_s(), 3),
            efficiency: round(line.per_s() / line.ideal_per_s(), 4),
            served_share: round(line.served_s.median / line.bound_s, 3),
            line,
        };
        Self {
            folgore: env!("CARGO_PKG_VERSION"),
            hardware: Hardware::gather(),
            mean_s: args.mean,
            sigma: args.sigma,
            adapter_mb: args.adapter_mb,
            wire_readers: if args.host_each { "all processes at once" } else { "one" },
            lines: lines.into_iter().map(full).collect(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mean_s, sigma, adapter_mb, wire_readers, .. } = self;
        writeln!(f, "{}", self.hardware)?;
        writeln!(
            f,
            "samples of {mean_s} s (lognormal, sigma {sigma}), adapters of {adapter_mb} MB; wire: {wire_readers}\n"
        )?;
        writeln!(
            f,
            "{:>9} {:>9} {:>8} {:>6}  {:>5} {:>15} {:>8} {:>6}  {:>20} {:>7} {:>25}",
            "processes",
            "samples/s",
            "ideal",
            "share",
            "hosts",
            "served s",
            "bound s",
            "ratio",
            "head MiB",
            "worker",
            "head/server/all/other"
        )?;
        for full in &self.lines {
            let line = &full.line;
            let served = format!("{:.2} ({:.2})", line.served_s.median, line.served_s.worst);
            let memory = line
                .head_memory
                .map_or_else(|| "?".into(), |m| format!("{:.0}..{:.0} {:+.1}/min", m.from, m.to, m.slope_per_min));
            let number = |value: Option<f64>| value.map_or_else(|| "?".into(), |v| format!("{v:.2}"));
            let cores = [line.head_cores, line.server_cores, line.workers_cores, line.other_cores].map(number);
            writeln!(
                f,
                "{:>9} {:>9.2} {:>8.2} {:>6.3}  {:>5} {served:>15} {:>8.2} {:>6.2}  {memory:>20} {:>7} {:>25}",
                format!("{}x{}", line.processes, line.slots),
                full.samples_per_s,
                full.ideal_per_s,
                full.efficiency,
                line.hosts,
                line.bound_s,
                full.served_share,
                line.worker_mib.map_or_else(|| "?".into(), |mib| format!("{mib:.0}")),
                cores.join("/"),
            )?;
        }
        writeln!(
            f,
            "\nserved: median (worst) seconds from announcement to the last process; cores: head, server, all workers, others"
        )?;
        for full in &self.lines {
            let Line { processes, slots, seats_of_a_step, steps, mean_drawn_s, wire_mb_s, upload_s, .. } = &full.line;
            writeln!(
                f,
                "{processes}x{slots}: {steps} steps of {seats_of_a_step} seats, mean drawn {mean_drawn_s:.2} s, wire \
                 {wire_mb_s:.0} MB/s, upload {:.2} ({:.2}) s, refused {:?}",
                upload_s.median, upload_s.worst, full.line.refused
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_a_line_and_times_have_a_middle() {
        let memory = Memory::of(&[(0.0, 10.0), (30.0, 11.0), (60.0, 12.0)]).unwrap();
        assert_eq!((memory.from, memory.to, memory.slope_per_min), (10.0, 12.0, 2.0));
        assert_eq!(Memory::of(&[(0.0, 10.0)]), None);
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Spread { count: 3, median: 2.0, worst: 3.0 });
        assert_eq!(Spread::of(Vec::new()).count, 0);
    }
}
