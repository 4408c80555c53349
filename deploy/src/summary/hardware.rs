//! The machine, as facts to paste into a report or a question.

use std::{fmt, fs, path::Path};

use folgore_model::backend::Isa;
use serde::{Deserialize, Serialize};

/// What a run ran on. Unknown facts are none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hardware {
    /// Operating system and its version.
    pub os: String,
    /// Processor architecture.
    pub arch: String,
    /// Processor.
    pub cpu: Option<String>,
    /// Threads that a process may use.
    pub cores: usize,
    /// Instruction set of the kernels.
    pub isa: String,
    /// Bytes of memory, or what this process may use of it where that is less.
    pub memory_total: Option<u64>,
    /// Bytes of it that are free.
    pub memory_free: Option<u64>,
}

impl Hardware {
    /// Looks at this machine.
    pub fn gather() -> Self {
        let (memory_total, memory_free) = memory();
        Self {
            os: os(),
            arch: std::env::consts::ARCH.to_owned(),
            cpu: cpu(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            isa: Isa::best().name().to_owned(),
            memory_total,
            memory_free,
        }
    }
}

impl fmt::Display for Hardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown = "unknown processor";
        write!(f, "{}, {} threads, kernels {}", self.cpu.as_deref().unwrap_or(unknown), self.cores, self.isa)?;
        if let Some(bytes) = self.memory_total {
            write!(f, ", {} memory", bytes_text(bytes))?;
        }
        write!(f, ", {} {}", self.os, self.arch)
    }
}

/// Bytes for people: `1.5 GiB`.
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

fn os() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).map(|name| name.trim_matches('"'));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    match (pretty, kernel.trim()) {
        (Some(name), "") => name.to_owned(),
        (Some(name), kernel) => format!("{name}, {} {kernel}", std::env::consts::OS),
        (None, kernel) => format!("{} {kernel}", std::env::consts::OS).trim().to_owned(),
    }
}

fn cpu() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name") || line.starts_with("Hardware"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Total and free, in bytes: those of the machine, or of the control group where it allows less.
pub fn memory() -> (Option<u64>, Option<u64>) {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo(&info, "MemTotal:");
    let free = meminfo(&info, "MemAvailable:");
    let group = |name: &str| -> Option<u64> { number(&Path::new("/sys/fs/cgroup").join(name)) };
    match (group("memory.max"), group("memory.current")) {
        (Some(limit), used) if total.is_none_or(|total| limit < total) => {
            let left = used.map(|used| limit.saturating_sub(used));
            (Some(limit), left.into_iter().chain(free).min())
        }
        _ => (total, free),
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn meminfo(info: &str, key: &str) -> Option<u64> {
    let line = info.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_in_the_unit_that_fits() {
        for (bytes, want) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (u64::MAX, "16777216.0 TiB")]
        {
            assert_eq!(bytes_text(bytes), want);
        }
    }

    #[test]
    fn memory_lines_are_read_in_kibibytes() {
        let info = "MemTotal:       16 kB\nMemAvailable:   4 kB\n";
        assert_eq!((meminfo(info, "MemTotal:"), meminfo(info, "MemFree:")), (Some(16384), None));
    }

    #[test]
    fn this_machine_has_cores_and_kernels() {
        let here = Hardware::gather();
        assert!(here.cores >= 1 && ["scalar", "avx2"].contains(&here.isa.as_str()), "{here:?}");
        assert!(here.to_string().contains("threads"));
    }
}
