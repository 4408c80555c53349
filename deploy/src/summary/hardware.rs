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

/// Total and free, in bytes: those of the machine, or of the control groups of this process where one allows less.
pub fn memory() -> (Option<u64>, Option<u64>) {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let machine = (meminfo(&info, "MemTotal:"), meminfo(&info, "MemAvailable:"));
    let root = Path::new("/sys/fs/cgroup");
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    // the unified hierarchy is the one without a name
    let path = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    root.join(path)
        .ancestors()
        .take_while(|group| group.starts_with(root))
        .fold(machine, |least, group| within(group, least))
}

/// `least`, or what the control group in `folder` allows where that is less. Pages of files that it has read are given up for others, so
/// they are free.
fn within(folder: &Path, (total, free): (Option<u64>, Option<u64>)) -> (Option<u64>, Option<u64>) {
    let Some(limit) = number(&folder.join("memory.max")) else { return (total, free) };
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let pages =
        |key: &str| stat.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok()).unwrap_or(0);
    let files = pages("active_file ") + pages("inactive_file ");
    let left = number(&folder.join("memory.current")).map(|used| limit.saturating_sub(used.saturating_sub(files)));
    (total.into_iter().chain([limit]).min(), left.into_iter().chain(free).min())
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
    fn a_control_group_may_allow_less_and_its_files_are_free() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let machine = (Some(1000), Some(900));
        assert_eq!(within(folder.path(), machine), machine);
        write("memory.max", "max\n");
        assert_eq!(within(folder.path(), machine), machine);
        write("memory.max", "500\n");
        write("memory.current", "480\n");
        assert_eq!(within(folder.path(), machine), (Some(500), Some(20)));
        write("memory.stat", "anon 80\nfile 400\nactive_file 100\ninactive_file 300\n");
        assert_eq!(within(folder.path(), machine), (Some(500), Some(420)));
        assert_eq!(within(folder.path(), (Some(300), Some(200))), (Some(300), Some(200)));
    }

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
        assert!(here.cores >= 1 && ["scalar", "avx2", "avx512"].contains(&here.isa.as_str()), "{here:?}");
        assert!(here.to_string().contains("threads"));
    }
}
