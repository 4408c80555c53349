//! Time, memory and the noise of other processes around a measurement.

use std::{fs, time::Instant};

use serde::Serialize;

/// Ticks of the system's clock in a second, as `/proc` counts them.
const TICKS: f64 = 100.0;

/// Started before a measurement; what it says afterwards is [`Around`].
pub struct Meter {
    begin: Instant,
    ticks: Option<Ticks>,
}

/// Memory and noise around a measurement. None where the system does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Around {
    /// Largest resident memory since the measurement began, in MiB.
    pub peak_memory_mib: Option<f64>,
    /// Cores that this process kept busy, on average.
    pub own_cores: Option<f64>,
    /// Cores that others kept busy. Above some tenths the measurement is a lower bound of what the machine does alone.
    pub other_cores: Option<f64>,
}

impl Meter {
    /// Begins, with the peak of memory forgotten where the system allows it.
    pub fn start() -> Self {
        // the answer does not matter: without it the peak is that of the whole process, which is never too small
        let _ = fs::write("/proc/self/clear_refs", "5");
        Self { begin: Instant::now(), ticks: Ticks::now() }
    }

    /// What happened since.
    pub fn stop(self) -> Around {
        let wall = self.begin.elapsed().as_secs_f64().max(1e-9);
        let spent = self.ticks.zip(Ticks::now()).map(|(from, to)| {
            let (own, all) = ((to.own - from.own) as f64 / TICKS, (to.busy - from.busy) as f64 / TICKS);
            (round(own / wall, 2), round((all - own).max(0.0) / wall, 2))
        });
        Around {
            peak_memory_mib: peak_memory().map(|bytes| round(bytes as f64 / 1024.0 / 1024.0, 1)),
            own_cores: spent.map(|(own, _)| own),
            other_cores: spent.map(|(_, other)| other),
        }
    }
}

/// Largest resident memory of this process, in bytes.
pub fn peak_memory() -> Option<u64> {
    memory("self", "VmHWM:")
}

/// Resident memory of process `pid`, in bytes.
pub fn resident_memory(pid: u32) -> Option<u64> {
    memory(&pid.to_string(), "VmRSS:")
}

fn memory(pid: &str, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Seconds that process `pid` has computed.
pub fn computed(pid: u32) -> Option<f64> {
    let ticks = own_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    Some(ticks as f64 / TICKS)
}

/// Seconds that all cores together have computed.
pub fn computed_by_all() -> Option<f64> {
    Some(busy_ticks(&fs::read_to_string("/proc/stat").ok()?)? as f64 / TICKS)
}

/// `value` with `digits` digits after the point.
pub fn round(value: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(digits);
    (value * unit).round() / unit
}

#[derive(Clone, Copy)]
struct Ticks {
    own: u64,
    busy: u64,
}

impl Ticks {
    fn now() -> Option<Self> {
        Some(Self {
            own: own_ticks(&fs::read_to_string("/proc/self/stat").ok()?)?,
            busy: busy_ticks(&fs::read_to_string("/proc/stat").ok()?)?,
        })
    }
}

/// User and system time of `/proc/self/stat`: fields 14 and 15. The second field may hold spaces and parentheses.
fn own_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let at = |i: usize| fields.get(i)?.parse::<u64>().ok();
    Some(at(11)? + at(12)?)
}

/// All but idle and waiting for disks of the first line of `/proc/stat`.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_whitespace().take(8).filter_map(|f| f.parse().ok()).collect();
    (fields.len() == 8).then(|| [0, 1, 2, 5, 6, 7].into_iter().map(|i| fields[i]).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_read_from_the_right_fields() {
        let own = "12 (a ) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0";
        assert_eq!(own_ticks(own), Some(300));
        assert_eq!(busy_ticks("cpu  1 2 4 1000 2000 8 16 32 7 7\ncpu0 9"), Some(63));
        assert_eq!(busy_ticks("cpu  1 2"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_meter_sees_this_process() {
        let meter = Meter::start();
        let memory = std::hint::black_box(vec![1u8; 8 << 20]);
        let around = meter.stop();
        assert!(around.peak_memory_mib.unwrap() > 8.0, "{around:?} for {} bytes", memory.len());
        assert!(around.other_cores.unwrap() >= 0.0);
    }
}
