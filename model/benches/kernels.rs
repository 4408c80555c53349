//! Kernels at the shapes of SmolLM2-135M, beside the ceilings of the machine: fused multiply-adds a second and bytes read a
//! second. `cargo bench -p folgore-model --bench kernels`; `FOLGORE_BENCH_THREADS` sets the threads (default 1).
//!
//! Criterion prints elements per second: for products an element is one floating-point operation, so Gelem/s is GFLOP/s.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use folgore_model::{
    backend::{AttnShape, AttnSpan, BLOCK, Backend, Cpu, GradSpan, Heads, KvPrecision, MatrixData, SampleSpec},
    quant::{Coded, Codes, Scales, nf4},
};

/// (inputs, outputs) of the linears and of the head.
const SHAPES: &[(usize, usize)] = &[(576, 576), (576, 1536), (1536, 576), (576, 49152)];
const ROWS: &[usize] = &[1, 8, 32, 256, 1024];
const HEADS: Heads = Heads { heads: 9, kv_heads: 3, head_dim: 64 };
const SHAPE: AttnShape = AttnShape { heads: HEADS, scale: 0.125, window: None };

fn backend() -> Cpu {
    let threads = std::env::var("FOLGORE_BENCH_THREADS").ok().and_then(|t| t.parse().ok()).unwrap_or(1);
    Cpu::with_threads(threads)
}

/// Small numbers without a pattern.
fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 1013) as f32 / 4000.0 - 0.12).collect()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fused_adds(rounds: u64) {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps};
    let (x, y) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
    let mut sums = [_mm256_set1_ps(1.0); 12];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, x, y);
        }
    }
    black_box(sums);
}

fn ceilings(c: &mut Criterion) {
    let mut group = c.benchmark_group("ceiling");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        let rounds = 100_000;
        group.throughput(Throughput::Elements(rounds * 12 * 16));
        // SAFETY: the instruction set was detected.
        group.bench_function("fma, one core", |b| b.iter(|| unsafe { fused_adds(rounds) }));
    }
    let memory = vec![1.0f32; 64 << 20];
    group.throughput(Throughput::Bytes(size_of_val(&memory[..]) as u64));
    group.bench_function("read, one core", |b| {
        b.iter(|| {
            let mut lanes = [0.0f32; 64];
            for line in memory.as_chunks::<64>().0 {
                lanes.iter_mut().zip(line).for_each(|(lane, x)| *lane += x);
            }
            black_box(lanes)
        });
    });
    group.finish();
}

fn products(c: &mut Criterion) {
    let b = backend();
    for (inner, out) in SHAPES {
        let w = b.matrix(MatrixData::F32(&numbers(inner * out)), *out, *inner);
        for rows in ROWS.iter().filter(|rows| inner * out * **rows <= 10_000_000_000) {
            let x = b.upload(&numbers(rows * inner));
            let mut y = b.upload(&numbers(rows * out));
            let mut dx = b.zeros(rows * inner);
            let mut group = c.benchmark_group(format!("{inner} to {out}"));
            group.sample_size(20);
            if *rows == 1 {
                group.throughput(Throughput::Bytes((4 * inner * out) as u64));
                group.bench_function("forward, bytes of the matrix", |bench| {
                    bench.iter(|| b.linear(&x, &w, &mut y, 0..1, false));
                });
            }
            group.throughput(Throughput::Elements((2 * rows * inner * out) as u64));
            group.bench_function(BenchmarkId::new("forward", rows), |bench| {
                bench.iter(|| b.linear(&x, &w, &mut y, 0..*rows, false));
            });
            group.bench_function(BenchmarkId::new("dx", rows), |bench| {
                bench.iter(|| b.linear_dx(&y, &w, &mut dx, 0..*rows, false));
            });
            if *out < 10_000 {
                let mut dw = b.zeros(inner * out);
                group.bench_function(BenchmarkId::new("dw", rows), |bench| {
                    bench.iter(|| b.linear_dw(&y, &x, &mut dw, *out, *inner, 0..*rows, 1.0));
                });
            }
            group.finish();
        }
    }
}

/// Few rows and matrices in few bits, as many of them as no cache holds, one after the other: what decoding is made of.
fn held(c: &mut Criterion) {
    let b = backend();
    let (inner, out, many) = (576, 1536, 64);
    let len = inner * out;
    let values = numbers(len);
    let bits: Vec<u16> = values.iter().map(|x| (x.to_bits() >> 16) as u16).collect();
    let bytes: Vec<u8> = (0..len).map(|i| ((i * 7919) >> 3) as u8).collect();
    let coded = |codes, least: bool| Coded {
        codes,
        scales: Scales::Plain(values[..len / 32].to_vec()),
        least: least.then(|| values[..len / 32].to_vec()),
        block: 32,
        len,
    };
    let eight = coded(Codes::Eight(bytes.iter().map(|byte| *byte as i8).collect()), false);
    let table = std::array::from_fn(|i| i as f32);
    let four = coded(Codes::Four { packed: bytes[..len / 2].to_vec(), table }, true);
    let nf4 = nf4::encode(&values, 64, true);
    for (name, data) in [
        ("f32", MatrixData::F32(&values)),
        ("bf16", MatrixData::Bf16(&bits)),
        ("Q8_0", MatrixData::Coded(&eight)),
        ("Q4_1", MatrixData::Coded(&four)),
        ("NF4", MatrixData::Coded(&nf4)),
    ] {
        let matrices: Vec<_> = (0..many).map(|_| b.matrix(data, out, inner)).collect();
        let mut group = c.benchmark_group(format!("held as {name}"));
        group.sample_size(20);
        for rows in [1, 4, 8, 32, 256] {
            let (x, mut y) = (b.upload(&numbers(rows * inner)), b.zeros(rows * out));
            group.throughput(Throughput::Elements((2 * many * rows * len) as u64));
            group.bench_function(BenchmarkId::new("forward", rows), |bench| {
                bench.iter(|| matrices.iter().for_each(|w| b.linear(&x, w, &mut y, 0..rows, false)));
            });
        }
        group.finish();
    }
}

fn attention(c: &mut Criterion) {
    let b = backend();
    let (width, kv_width) = (HEADS.heads * HEADS.head_dim, HEADS.kv_heads * HEADS.head_dim);
    let mut group = c.benchmark_group("attention");
    group.sample_size(20);
    for (name, spans, rows, start) in [
        ("prefill 512", 1usize, 512usize, 0usize),
        ("prefill 8 x 128", 8, 128, 0),
        ("decode 32 at 256", 32, 1, 255),
        ("decode 1 at 1024", 1, 1, 1023),
    ] {
        let (n, blocks) = (spans * rows, (start + rows).div_ceil(BLOCK));
        let kv = b.kv(blocks * spans, HEADS, KvPrecision::F32);
        let q = b.upload(&numbers(n * width));
        let mut out = b.zeros(n * width);
        let spans: Vec<AttnSpan> = (0..spans)
            .map(|s| AttnSpan {
                rows: s * rows..(s + 1) * rows,
                start,
                table: (0..blocks).map(|t| (s * blocks + t) as u32).collect(),
            })
            .collect();
        let pairs: usize = spans.len() * (0..rows).map(|r| start + r + 1).sum::<usize>() * HEADS.heads;
        group.throughput(Throughput::Elements((4 * pairs * HEADS.head_dim) as u64));
        group.bench_function(name, |bench| bench.iter(|| b.attention(&q, &kv, &spans, SHAPE, &mut out)));
        if start == 0 {
            let (k, v) = (b.upload(&numbers(n * kv_width)), b.upload(&numbers(n * kv_width)));
            let (mut dq, mut dk, mut dv) = (b.zeros(n * width), b.zeros(n * kv_width), b.zeros(n * kv_width));
            let spans: Vec<GradSpan> =
                spans.iter().map(|s| GradSpan { rows: s.rows.clone(), prefix: vec![] }).collect();
            group.throughput(Throughput::Elements((10 * pairs * HEADS.head_dim) as u64));
            group.bench_function(format!("{name} backward"), |bench| {
                bench.iter(|| {
                    b.attention_backward(&q, &k, &v, &out, &q, &spans, SHAPE, &mut dq, &mut dk, &mut dv);
                });
            });
        }
    }
    group.finish();
}

fn head(c: &mut Criterion) {
    let b = backend();
    let (width, vocab) = (576, 49152);
    let head = b.matrix(MatrixData::F32(&numbers(width * vocab)), vocab, width);
    let mut group = c.benchmark_group("head");
    group.sample_size(10);
    for rows in [1, 8, 32, 256] {
        let hidden = b.upload(&numbers(rows * width));
        let targets = vec![5; rows];
        let spec = SampleSpec {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seen: vec![],
            uniform: 0.4,
        };
        let flops = (2 * rows * width * vocab) as u64;
        group.throughput(Throughput::Elements(flops));
        group.bench_function(BenchmarkId::new("log-probs", rows), |bench| {
            bench.iter(|| b.head_logprobs(&hidden, (&head).into(), &targets, 1.0));
        });
        let plain = vec![spec.clone(); rows];
        group.bench_function(BenchmarkId::new("sample", rows), |bench| {
            bench.iter(|| b.sample(&hidden, (&head).into(), &plain))
        });
        let cut = vec![SampleSpec { top_k: 50, top_p: 0.9, ..spec }; rows];
        group.bench_function(BenchmarkId::new("sample top-k top-p", rows), |bench| {
            bench.iter(|| b.sample(&hidden, (&head).into(), &cut));
        });
        let mut dhidden = b.zeros(rows * width);
        let (lse, dlogprobs) = (vec![11.0; rows], vec![1.0; rows]);
        group.throughput(Throughput::Elements(2 * flops));
        group.bench_function(BenchmarkId::new("backward", rows), |bench| {
            bench
                .iter(|| b.head_backward(&hidden, (&head).into(), &targets, 1.0, &lse, &dlogprobs, &mut dhidden, None));
        });
    }
    group.finish();
}

/// The shapes of the embedded policy: here what matters is that nothing is spread over threads in vain.
fn tiny(c: &mut Criterion) {
    let b = backend();
    let w = b.matrix(MatrixData::F32(&numbers(96 * 96)), 96, 96);
    let mut group = c.benchmark_group("96 to 96");
    for rows in [1, 8, 64, 512] {
        let x = b.upload(&numbers(rows * 96));
        let mut y = b.zeros(rows * 96);
        group.throughput(Throughput::Elements((2 * rows * 96 * 96) as u64));
        group.bench_function(BenchmarkId::new("forward", rows), |bench| {
            bench.iter(|| b.linear(&x, &w, &mut y, 0..rows, false));
        });
    }
    group.finish();
}

criterion_group!(benches, ceilings, products, held, attention, head, tiny);
criterion_main!(benches);
