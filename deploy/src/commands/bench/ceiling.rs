//! What the machine could do: multiply-adds in a large product with our own kernels, and reading from memory.

use std::{hint::black_box, sync::Barrier, thread, time::Instant};

use folgore_model::backend::{Backend as _, Cpu, MatrixData};
use serde::Serialize;

/// Side of the product's square matrices.
const SIDE: usize = 2048;
/// Bytes that are read: far more than any cache holds.
const READ_BYTES: usize = 512 << 20;
/// Measurements; the best counts.
const TRIALS: usize = 5;

/// Best of five, with all threads and with one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ceilings {
    /// Product of two matrices of 2048 by 2048 in f32, all threads.
    pub gemm_gflops: f64,
    /// The same, one thread.
    pub gemm_gflops_1_thread: f64,
    /// Reading 512 MiB, all threads.
    pub read_gbps: f64,
    /// The same, one thread.
    pub read_gbps_1_thread: f64,
}

impl Ceilings {
    /// Measures them with `threads` threads.
    pub fn measure(threads: usize) -> Self {
        // written, so that the pages are there
        let memory = vec![1u32; READ_BYTES / size_of::<u32>()];
        Self {
            gemm_gflops: gemm(threads),
            gemm_gflops_1_thread: gemm(1),
            read_gbps: read(&memory, threads),
            read_gbps_1_thread: read(&memory, 1),
        }
    }

    /// The better of two measurements, number by number.
    pub fn best(self, other: Self) -> Self {
        Self {
            gemm_gflops: self.gemm_gflops.max(other.gemm_gflops),
            gemm_gflops_1_thread: self.gemm_gflops_1_thread.max(other.gemm_gflops_1_thread),
            read_gbps: self.read_gbps.max(other.read_gbps),
            read_gbps_1_thread: self.read_gbps_1_thread.max(other.read_gbps_1_thread),
        }
    }
}

/// Seconds of the fastest of five runs, after one that is not counted.
fn fastest(mut run: impl FnMut() -> f64) -> f64 {
    run();
    (0..TRIALS).map(|_| run()).fold(f64::INFINITY, f64::min)
}

fn gemm(threads: usize) -> f64 {
    let backend = Cpu::with_threads(threads);
    let values: Vec<f32> = (0..SIDE * SIDE).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect();
    let (x, w) = (backend.upload(&values), backend.matrix(MatrixData::F32(&values), SIDE, SIDE));
    let mut out = backend.alloc(SIDE * SIDE);
    let seconds = fastest(|| {
        let begin = Instant::now();
        backend.linear(&x, &w, &mut out, 0..SIDE, false);
        begin.elapsed().as_secs_f64()
    });
    2.0 * (SIDE as f64).powi(3) / seconds / 1e9
}

fn read(memory: &[u32], threads: usize) -> f64 {
    let seconds = fastest(|| {
        let (ready, part) = (&Barrier::new(threads), memory.len() / threads);
        // from the first to begin to the last to end, by their own clocks: whoever waits for them may wake late, as they have the cores
        let spans: Vec<_> = thread::scope(|scope| {
            let readers = memory.chunks_exact(part).take(threads).map(|part| {
                scope.spawn(move || {
                    ready.wait();
                    let begin = Instant::now();
                    black_box(halves_equal(part));
                    (begin, Instant::now())
                })
            });
            let readers: Vec<_> = readers.collect();
            readers.into_iter().map(|reader| reader.join().expect("reading does not panic")).collect()
        });
        let (begin, end) = (spans.iter().map(|(begin, _)| begin).min(), spans.iter().map(|(_, end)| end).max());
        begin.zip(end).map_or(f64::INFINITY, |(begin, end)| end.duration_since(*begin).as_secs_f64())
    });
    (memory.len() / threads * threads * size_of::<u32>()) as f64 / seconds / 1e9
}

/// Whether the two halves are equal, told by the C library's comparison, whose loop is written for the processor: reading is what takes
/// the time, however this crate is compiled.
fn halves_equal(values: &[u32]) -> bool {
    // of unequal lengths not one number would be read
    let (halves, _) = values.split_at(values.len() / 2 * 2);
    let (a, b) = halves.split_at(halves.len() / 2);
    a == b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_reads_everything() {
        let mut values = [3; 640];
        assert!(halves_equal(&values));
        values[639] = 4;
        assert!(!halves_equal(&values));
        assert!(halves_equal(&[3; 641]), "an odd number is no reason to stop at once");
        assert!(read(&[1; 6400], 3) > 0.0);
    }
}
