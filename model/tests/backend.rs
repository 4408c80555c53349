//! Every operation of the CPU backend against the reference: forward bit for bit, backward within 1e-5, whatever the
//! threads and the instruction set.
#![allow(clippy::single_range_in_vec_init, reason = "a prefix is a list of ranges, often of one")]

use std::ops::Range;

use folgore_model::{
    Activation,
    backend::{
        AdamW, AttnShape, AttnSpan, BLOCK, Backend, Cpu, CpuBuf, GradSpan, Head, Heads, Isa, KvPrecision, MatrixData,
        Naive, SampleSpec,
    },
    quant::{
        Coded, Codes, Scales,
        dynamic::{Blocks, SIGNED, UNSIGNED},
        nf4,
    },
};
use folgore_protocol::seed;

fn random(stream: u64, len: usize) -> Vec<f32> {
    (0..len as u64).map(|i| seed::normal(stream, i)).collect()
}

/// Every way the CPU backend can be made.
fn cpus() -> Vec<Cpu> {
    Isa::ALL.map(Cpu::with_isa).into_iter().chain([1, 2, 3].map(Cpu::with_threads)).collect()
}

/// Named results of one operation.
type Results = Vec<(String, Vec<f32>)>;

fn assert_same_bits(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g.to_bits() == w.to_bits(), "{what}: number {i} is {g:e}, expected {w:e}");
    }
}

fn assert_close(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let size = want.iter().fold(1e-3f32, |a, b| a.max(b.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= 1e-5 * size, "{what}: number {i} is {g:e}, expected {w:e} (size {size:e})");
    }
}

/// Compares all results of all CPU backends with those of the reference.
fn compare(naive: &Results, cpu: impl Fn(&Cpu) -> Results, check: fn(&str, &[f32], &[f32])) {
    let mut first: Option<Results> = None;
    for backend in cpus() {
        let got = cpu(&backend);
        assert_eq!(got.len(), naive.len());
        for ((name, got), (_, want)) in got.iter().zip(naive) {
            check(&format!("{name} on {backend:?}"), got, want);
        }
        // threads and instruction sets never change a bit, of gradients neither
        let first = first.get_or_insert_with(|| got.clone());
        for ((name, got), (_, want)) in got.iter().zip(first.iter()) {
            assert_same_bits(&format!("{name} on {backend:?} against the first"), got, want);
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Product {
    rows: usize,
    inner: usize,
    out: usize,
    part: (usize, usize),
}

/// Shapes below, at and above every blocking size, and odd ones.
const PRODUCTS: &[Product] = &[
    Product { rows: 1, inner: 1, out: 1, part: (0, 1) },
    Product { rows: 1, inner: 576, out: 576, part: (0, 1) },
    Product { rows: 1, inner: 64, out: 40, part: (0, 1) },
    Product { rows: 1, inner: 64, out: 50, part: (0, 1) },
    Product { rows: 2, inner: 33, out: 50, part: (0, 2) },
    Product { rows: 3, inner: 64, out: 31, part: (1, 3) },
    Product { rows: 2, inner: 96, out: 80, part: (0, 2) },
    Product { rows: 4, inner: 192, out: 50, part: (1, 3) },
    Product { rows: 6, inner: 64, out: 48, part: (0, 6) },
    Product { rows: 9, inner: 320, out: 40, part: (0, 8) },
    Product { rows: 20, inner: 640, out: 100, part: (0, 20) },
    Product { rows: 4, inner: 7, out: 129, part: (0, 4) },
    Product { rows: 5, inner: 100, out: 8, part: (2, 5) },
    Product { rows: 13, inner: 8, out: 65, part: (0, 13) },
    Product { rows: 7, inner: 700, out: 96, part: (3, 3) },
    Product { rows: 200, inner: 330, out: 70, part: (1, 199) },
    Product { rows: 401, inner: 96, out: 200, part: (0, 401) },
    Product { rows: 270, inner: 17, out: 345, part: (0, 270) },
    Product { rows: 300, inner: 130, out: 8, part: (0, 300) },
];

fn products<B: Backend>(b: &B, case: Product) -> Results {
    let Product { rows, inner, out, part } = case;
    let part = part.0..part.1;
    let w = b.matrix(MatrixData::F32(&random(1, out * inner)), out, inner);
    assert_eq!(b.shape(&w), (out, inner));
    let x = b.upload(&random(2, rows * inner));
    let mut results = Vec::new();
    for accumulate in [false, true] {
        let mut y = b.upload(&random(3, rows * out));
        b.linear(&x, &w, &mut y, part.clone(), accumulate);
        results.push((format!("linear {case:?} {accumulate}"), b.download(&y)));
        // one chain over the outputs, so the same bits as the reference
        let mut dx = b.upload(&random(4, rows * inner));
        b.linear_dx(&y, &w, &mut dx, part.clone(), accumulate);
        results.push((format!("linear_dx {case:?} {accumulate}"), b.download(&dx)));
    }
    let mut w = w;
    b.set_matrix(&mut w, &b.upload(&random(5, out * inner)), 0.3);
    let mut y = b.zeros(rows * out);
    b.linear(&x, &w, &mut y, 0..rows, false);
    results.push((format!("set_matrix {case:?}"), b.download(&y)));
    let bits: Vec<u16> = random(6, out * inner).iter().map(|x| (x.to_bits() >> 16) as u16).collect();
    let four = [(32, true), (64, false)].map(|(block, nested)| nf4::encode(&random(7, out * inner), block, nested));
    let block = if inner.is_multiple_of(16) { 16 } else { 1 };
    let eight = Coded {
        codes: Codes::Eight((0..(out * inner) as u64).map(|i| seed::below(11, i, 256) as u8 as i8).collect()),
        scales: Scales::Plain(random(12, out * inner / block)),
        least: Some(random(13, out * inner / block)),
        block,
        len: out * inner,
    };
    let block = if inner.is_multiple_of(32) { 32 } else { 1 };
    let whole = Coded {
        codes: Codes::Four {
            packed: (0..(out * inner).div_ceil(2) as u64).map(|i| seed::below(14, i, 256) as u8).collect(),
            table: std::array::from_fn(|i| i as f32 - 3.0),
        },
        scales: Scales::Plain(random(15, out * inner / block)),
        least: Some(random(16, out * inner / block)),
        block,
        len: out * inner,
    };
    // products with codes are exact only where scales have bits to spare
    let from_zero = |spare: u32| Coded {
        codes: match &whole.codes {
            Codes::Four { packed, .. } => {
                Codes::Four { packed: packed.clone(), table: std::array::from_fn(|i| i as f32) }
            }
            eight => eight.clone(),
        },
        scales: Scales::Plain(
            random(17, out * inner / block).iter().map(|x| f32::from_bits(x.to_bits() & !spare)).collect(),
        ),
        ..whole.clone()
    };
    let (exact, rounded) = (from_zero(15), from_zero(0));
    let coded = [
        ("eight bits", MatrixData::Coded(&eight)),
        ("exact products of four bits", MatrixData::Coded(&exact)),
        ("rounded products of four bits", MatrixData::Coded(&rounded)),
        ("whole numbers in four bits", MatrixData::Coded(&whole)),
        ("bf16", MatrixData::Bf16(&bits)),
        ("nf4", MatrixData::Coded(&four[0])),
        ("nf4 plain", MatrixData::Coded(&four[1])),
    ];
    let coded = coded.map(|(name, data)| (name, b.matrix(data, out, inner)));
    let ids: Vec<u32> = (0..rows as u64).map(|i| seed::below(7, i, out as u64) as u32).collect();
    for (name, mut w) in [("f32", w)].into_iter().chain(coded) {
        b.linear(&x, &w, &mut y, 0..rows, true);
        results.push((format!("{name} {case:?}"), b.download(&y)));
        let mut dx = b.upload(&random(4, rows * inner));
        b.linear_dx(&y, &w, &mut dx, part.clone(), true);
        results.push((format!("{name} back {case:?}"), b.download(&dx)));
        let mut rows_of_w = b.alloc(rows * inner);
        b.embed(&w, &ids, &mut rows_of_w);
        results.push((format!("{name} embed {case:?}"), b.download(&rows_of_w)));
        // other numbers in the place of codes
        b.set_matrix(&mut w, &b.upload(&random(5, out * inner)), 1.0);
        b.linear(&x, &w, &mut y, 0..rows, false);
        results.push((format!("{name} set {case:?}"), b.download(&y)));
    }
    results
}

#[test]
fn codes_take_the_memory_that_they_say() {
    let (out, inner) = (320, 512);
    let coded = nf4::encode(&random(1, out * inner), 64, true);
    let b = Cpu::new();
    let bytes = |data: MatrixData| b.matrix_bytes(&b.matrix(data, out, inner));
    assert_eq!(bytes(MatrixData::F32(&coded.decoded())), 4 * out * inner);
    assert_eq!(bytes(MatrixData::Bf16(&vec![0; out * inner])), 2 * out * inner);
    // a code for each number, a byte for 64, a number for 256 of those, and what the bytes stand for
    assert_eq!(
        bytes(MatrixData::Coded(&coded)),
        out * inner / 2 + out * inner / 64 + out * inner / 64 / 256 * 4 + 1024
    );
}

fn weight_gradients<B: Backend>(b: &B, case: Product) -> Results {
    let Product { rows, inner, out, part } = case;
    let (dy, x) = (b.upload(&random(8, rows * out)), b.upload(&random(9, rows * inner)));
    let mut dw = b.upload(&random(10, out * inner));
    b.linear_dw(&dy, &x, &mut dw, out, inner, part.0..part.1, 0.7);
    vec![(format!("linear_dw {case:?}"), b.download(&dw))]
}

#[test]
fn products_equal_the_reference_bit_for_bit() {
    for case in PRODUCTS {
        compare(&products(&Naive::new(), *case), |b| products(b, *case), assert_same_bits);
    }
}

#[test]
fn weight_gradients_equal_the_reference() {
    for case in PRODUCTS {
        compare(&weight_gradients(&Naive::new(), *case), |b| weight_gradients(b, *case), assert_close);
    }
}

fn rowwise<B: Backend>(b: &B, rows: usize, width: usize) -> Results {
    let n = rows * width;
    let (x, y) = (b.upload(&random(1, n)), b.upload(&random(2, n)));
    let weight = b.upload(&random(3, width));
    let mut results = Vec::new();
    let mut push = |name: &str, buf: &B::Buf| results.push((format!("{name} {rows}x{width}"), b.download(buf)));
    let mut out = b.alloc(n);
    b.rms_norm(&x, &weight, 1e-5, &mut out);
    push("rms_norm", &out);
    for activation in [Activation::Silu, Activation::GeluTanh] {
        b.glu(activation, &x, &y, &mut out);
        push(&format!("glu {activation:?}"), &out);
    }
    b.fill_rows(&weight, &mut out);
    push("fill_rows", &out);
    b.dropout(&x, 0.3, 77, &mut out);
    push("dropout", &out);
    let mut sum = b.upload(&random(4, n));
    b.add(&mut sum, &x);
    b.scale(&mut sum, 1.7);
    push("add and scale", &sum);
    b.round_bf16(&mut sum);
    push("round_bf16", &sum);
    let index: Vec<u32> = (0..2 * rows as u64).map(|i| seed::below(5, i, rows as u64) as u32).collect();
    let mut picked = b.alloc(2 * n);
    let places: Vec<_> = index.iter().enumerate().map(|(i, row)| (i as u32 % 2, *row)).collect();
    b.gather_rows(&[&x, &b.upload(&random(6, n))], &places, width, &mut picked, 0);
    push("gather_rows", &picked);
    b.scatter_add_rows(&picked, &index, width, &mut sum);
    push("scatter_add_rows", &sum);
    b.embed_backward(&picked, &index, width, &mut sum);
    push("embed_backward", &sum);
    let settings = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: 0.1, grad_scale: 0.5, step: 3 };
    let (mut param, mut m, mut v) = (b.upload(&random(6, n)), b.upload(&random(7, n)), b.zeros(n));
    b.add(&mut v, &b.upload(&random(8, n).iter().map(|x| x * x).collect::<Vec<_>>()));
    b.adamw(&mut param, &x, &mut m, &mut v, &settings);
    push("adamw param", &param);
    push("adamw m", &m);
    push("adamw v", &v);
    let codes =
        |seed, map| b.upload_codes(Blocks::encode(&random(seed, n).iter().map(|x| x.abs()).collect::<Vec<_>>(), map));
    let (mut m, mut v) = (codes(7, &SIGNED), codes(8, &UNSIGNED));
    b.adamw_8bit(&mut param, &x, &mut m, &mut v, &settings);
    push("adamw_8bit param", &param);
    for (name, codes, map) in [("m", m, &*SIGNED), ("v", v, &*UNSIGNED)] {
        results.push((format!("adamw_8bit {name} {rows}x{width}"), b.download_codes(&codes).decode(map)));
    }
    let squares = b.sum_of_squares(&x);
    results.push((
        format!("sum_of_squares {rows}x{width}"),
        vec![squares as f32, (squares - f64::from(squares as f32)) as f32],
    ));
    b.fill_zero(&mut out);
    assert!(b.download(&out).iter().all(|x| *x == 0.0));
    results
}

fn rowwise_back<B: Backend>(b: &B, rows: usize, width: usize) -> Results {
    let n = rows * width;
    let [x, y, dy] = [1, 2, 3].map(|s| b.upload(&random(s, n)));
    let weight = b.upload(&random(4, width));
    let (mut dx, mut dweight) = (b.upload(&random(5, n)), b.upload(&random(6, width)));
    b.rms_norm_backward(&x, &weight, 1e-5, &dy, &mut dx, Some(&mut dweight));
    let mut plain = b.upload(&random(5, n));
    b.rms_norm_backward(&x, &weight, 1e-5, &dy, &mut plain, None);
    assert_same_bits("dx with and without dweight", &b.download(&plain), &b.download(&dx));
    let mut results = vec![("norm dx".to_owned(), dx), ("norm dweight".to_owned(), dweight)];
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let (mut dgate, mut dup) = (b.alloc(n), b.alloc(n));
        b.glu_backward(activation, &x, &y, &dy, &mut dgate, &mut dup);
        results.extend([(format!("dgate {activation:?}"), dgate), (format!("dup {activation:?}"), dup)]);
    }
    results.into_iter().map(|(name, buf)| (format!("{name} {rows}x{width}"), b.download(&buf))).collect()
}

const ROWWISE: &[(usize, usize)] = &[(1, 1), (1, 576), (3, 17), (5, 96), (70, 33), (200, 576)];

#[test]
fn rowwise_operations_equal_the_reference_bit_for_bit() {
    for (rows, width) in ROWWISE {
        compare(&rowwise(&Naive::new(), *rows, *width), |b| rowwise(b, *rows, *width), assert_same_bits);
    }
}

#[test]
fn rowwise_gradients_equal_the_reference() {
    for (rows, width) in ROWWISE {
        compare(&rowwise_back(&Naive::new(), *rows, *width), |b| rowwise_back(b, *rows, *width), assert_close);
    }
}

fn rope_table(positions: usize, head_dim: usize) -> Vec<f32> {
    let angle = |p: usize, i: usize| p as f32 * 10_000f32.powf(-2.0 * i as f32 / head_dim as f32);
    let half = head_dim / 2;
    (0..positions)
        .flat_map(|p| (0..head_dim).map(move |i| if i < half { angle(p, i).cos() } else { angle(p, i - half).sin() }))
        .collect()
}

fn rotated<B: Backend>(b: &B, head_dim: usize, heads: usize) -> Results {
    let positions: Vec<u32> = (0..50u64).map(|i| seed::below(1, i, 40) as u32).collect();
    let table = b.upload(&rope_table(40, head_dim));
    let start = random(2, positions.len() * heads * head_dim);
    let mut x = b.upload(&start);
    b.rope(&mut x, &table, &positions, heads, head_dim, false);
    let turned = b.download(&x);
    b.rope(&mut x, &table, &positions, heads, head_dim, true);
    let back = b.download(&x);
    assert_close("turning back", &back, &start);
    vec![(format!("rope {head_dim}"), turned), (format!("rope back {head_dim}"), back)]
}

#[test]
fn rotation_equals_the_reference_and_turns_back() {
    for (head_dim, heads) in [(8, 3), (32, 1), (64, 9), (128, 2)] {
        compare(&rotated(&Naive::new(), head_dim, heads), |b| rotated(b, head_dim, heads), assert_same_bits);
    }
}

/// A cache of two sequences that share their first two blocks, the second going on in the middle of a copied block.
fn attended<B: Backend>(
    b: &B,
    precision: KvPrecision,
    shape: AttnShape,
    first_len: usize,
    second_len: usize,
) -> Results {
    let heads = shape.heads;
    let shared = 2 * BLOCK + 5;
    let (width, kv_width) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
    let blocks = 64;
    let mut kv = b.kv(blocks, heads, precision);
    // what a row may not see must not matter, not even when it is not a number
    let junk = b.upload(&vec![f32::NAN; kv_width]);
    let everywhere: Vec<(u32, u32)> = (0..(blocks * BLOCK) as u32).map(|slot| (0, slot)).collect();
    b.kv_write(&mut kv, &junk, &junk, &everywhere);
    let first_table: Vec<u32> = (0..first_len.div_ceil(BLOCK) as u32).map(|i| (i * 7 + 3) % 64).collect();
    let mut second_table: Vec<u32> = (0..second_len.div_ceil(BLOCK) as u32).map(|i| (i * 7 + 4) % 64).collect();
    second_table[..2].copy_from_slice(&first_table[..2]);
    let slot = |table: &[u32], j: usize| table[j / BLOCK] * BLOCK as u32 + (j % BLOCK) as u32;

    let (k, v) = (b.upload(&random(1, first_len * kv_width)), b.upload(&random(2, first_len * kv_width)));
    let writes: Vec<(u32, u32)> = (0..first_len).map(|j| (j as u32, slot(&first_table, j))).collect();
    b.kv_write(&mut kv, &k, &v, &writes);
    b.kv_copy(&mut kv, &[(first_table[2], second_table[2])]);
    let own = second_len - shared;
    let (k, v) = (b.upload(&random(3, own * kv_width)), b.upload(&random(4, own * kv_width)));
    let writes: Vec<(u32, u32)> = (0..own).map(|j| (j as u32, slot(&second_table, shared + j))).collect();
    b.kv_write(&mut kv, &k, &v, &writes);

    // the rows of the call: the second sequence from the middle of a block, then one row of the first, then all of it, then one row
    // each of both at places that see the shared blocks, parts of them and their own
    let many = own + 1 + first_len;
    let single =
        [(true, 2), (true, 20), (false, 21), (false, 31), (true, 31), (true, 33), (false, second_len - 1), (true, 36)];
    let rows = many + single.len();
    let q = b.upload(&random(5, rows * width));
    let mut spans = vec![
        AttnSpan { rows: 0..own, start: shared, table: second_table.clone() },
        AttnSpan { rows: own..own + 1, start: first_len - 1, table: first_table.clone() },
        AttnSpan { rows: own + 1..many, start: 0, table: first_table.clone() },
    ];
    for ((first, start), row) in single.into_iter().zip(many..) {
        let table = if first { &first_table } else { &second_table };
        spans.push(AttnSpan { rows: row..row + 1, start, table: table[..start / BLOCK + 1].to_vec() });
    }
    let mut out = b.alloc(rows * width);
    b.attention(&q, &kv, &spans, shape, &mut out);
    let together = b.download(&out);
    assert!(together.iter().all(|x| x.is_finite()), "attention sees only what it may");
    // each span alone, its rows one at a time: the same bits
    let mut alone = b.alloc(rows * width);
    for span in spans.iter().rev() {
        for (i, row) in span.rows.clone().enumerate().rev() {
            let one = AttnSpan { rows: row..row + 1, start: span.start + i, table: span.table.clone() };
            b.attention(&q, &kv, &[one], shape, &mut alone);
        }
    }
    assert_same_bits("attention row by row", &b.download(&alone), &together);
    vec![(format!("attention {precision:?} {shape:?} {first_len} {second_len}"), together)]
}

const HEADS: &[Heads] = &[
    Heads { heads: 3, kv_heads: 1, head_dim: 8 },
    Heads { heads: 4, kv_heads: 4, head_dim: 32 },
    Heads { heads: 9, kv_heads: 3, head_dim: 64 },
    Heads { heads: 2, kv_heads: 1, head_dim: 128 },
    Heads { heads: 2, kv_heads: 2, head_dim: 24 },
];

/// Windows of one key, below, at and above a block, and one that nothing outgrows.
const WINDOWS: [Option<usize>; 6] = [None, Some(1), Some(7), Some(16), Some(37), Some(1000)];

fn shape(heads: Heads, window: Option<usize>) -> AttnShape {
    AttnShape { heads, scale: 0.3, window }
}

#[test]
fn attention_equals_the_reference_bit_for_bit() {
    for heads in HEADS {
        for (first, second) in [(37, 38), (100, 80)] {
            for window in WINDOWS {
                let shape = shape(*heads, window);
                for precision in [KvPrecision::F32, KvPrecision::Bf16] {
                    let naive = attended(&Naive::new(), precision, shape, first, second);
                    compare(&naive, |b| attended(b, precision, shape, first, second), assert_same_bits);
                }
            }
        }
    }
    let wide = shape(Heads { heads: 64, kv_heads: 1, head_dim: 8 }, None);
    let naive = attended(&Naive::new(), KvPrecision::F32, wide, 40, 50);
    compare(&naive, |b| attended(b, KvPrecision::F32, wide, 40, 50), assert_same_bits);
}

#[test]
fn a_window_forgets_what_is_behind_it() {
    let heads = HEADS[0];
    let seen = |window| attended(&Naive::new(), KvPrecision::F32, shape(heads, window), 100, 80)[0].1.clone();
    assert_same_bits("a window that nothing outgrows", &seen(Some(1000)), &seen(None));
    // the row at place 99 of the first sequence follows those of the second's own keys
    let row = (80 - 2 * BLOCK - 5) * heads.heads * heads.head_dim;
    assert_ne!(seen(Some(99))[row..][..8], seen(None)[row..][..8]);
    assert_same_bits("all hundred keys", &seen(Some(100))[row..][..24], &seen(None)[row..][..24]);
}

/// A cache in bfloat16 is one of f32 that rounded numbers were written to.
#[test]
fn a_cache_in_bfloat16_holds_rounded_numbers() {
    let b = Cpu::new();
    let shape = shape(HEADS[2], None);
    let rows = 40;
    let (width, kv_width) = (9 * 64, 3 * 64);
    let q = b.upload(&random(1, rows * width));
    let mut rounded = [b.upload(&random(2, rows * kv_width)), b.upload(&random(3, rows * kv_width))];
    let plain = rounded.each_ref().map(|x| b.upload(x));
    rounded.iter_mut().for_each(|x| b.round_bf16(x));
    assert!(rounded[0].iter().all(|x| x.to_bits() & 0xffff == 0) && rounded[0][..] != plain[0][..]);
    let attended = |precision, [k, v]: &[CpuBuf; 2]| {
        let mut kv = b.kv(3, shape.heads, precision);
        b.kv_write(&mut kv, k, v, &(0..rows as u32).map(|row| (row, row)).collect::<Vec<_>>());
        let mut out = b.alloc(rows * width);
        b.attention(&q, &kv, &[AttnSpan { rows: 0..rows, start: 0, table: vec![0, 1, 2] }], shape, &mut out);
        b.download(&out)
    };
    assert_same_bits("rounded once", &attended(KvPrecision::Bf16, &plain), &attended(KvPrecision::F32, &rounded));
    assert_same_bits("or twice", &attended(KvPrecision::Bf16, &rounded), &attended(KvPrecision::F32, &rounded));
    assert_ne!(attended(KvPrecision::F32, &plain), attended(KvPrecision::F32, &rounded));
}

/// A prompt, three answers that share it, and a sequence of its own.
fn grad_spans() -> Vec<GradSpan> {
    let span = |rows: Range<usize>, prefix: Vec<Range<usize>>| GradSpan { rows, prefix };
    vec![
        span(0..21, vec![]),
        span(21..38, vec![0..21]),
        span(38..39, vec![0..21]),
        span(39..70, vec![0..10, 21..25]),
        span(70..120, vec![]),
    ]
}

fn attended_back<B: Backend>(b: &B, shape: AttnShape, spans: &[GradSpan], rows: usize) -> Results {
    let heads = shape.heads;
    let (width, kv_width) = (heads.heads * heads.head_dim, heads.kv_heads * heads.head_dim);
    let (q, dout) = (b.upload(&random(1, rows * width)), b.upload(&random(2, rows * width)));
    let (k, v) = (b.upload(&random(3, rows * kv_width)), b.upload(&random(4, rows * kv_width)));
    let mut out = b.zeros(rows * width);
    forward_of(b, &q, &k, &v, spans, shape, rows, &mut out);
    let mut grads = [width, kv_width, kv_width].map(|w| b.upload(&random(6, rows * w)));
    let [dq, dk, dv] = &mut grads;
    b.attention_backward(&q, &k, &v, &out, &dout, spans, shape, dq, dk, dv);
    ["dq", "dk", "dv"].into_iter().zip(&grads).map(|(n, g)| (format!("{n} {shape:?}"), b.download(g))).collect()
}

/// Attention over the keys of the call itself, through a cache where each span has its own blocks.
fn forward_of<B: Backend>(
    b: &B,
    q: &B::Buf,
    k: &B::Buf,
    v: &B::Buf,
    spans: &[GradSpan],
    shape: AttnShape,
    rows: usize,
    out: &mut B::Buf,
) {
    let blocks_each = rows.div_ceil(BLOCK) + 1;
    let mut kv = b.kv(blocks_each * spans.len(), shape.heads, KvPrecision::F32);
    let mut forward = Vec::new();
    for (i, span) in spans.iter().enumerate() {
        let keys: Vec<usize> = span.prefix.iter().cloned().flatten().chain(span.rows.clone()).collect();
        let first = (i * blocks_each * BLOCK) as u32;
        let writes: Vec<(u32, u32)> = keys.iter().enumerate().map(|(j, row)| (*row as u32, first + j as u32)).collect();
        b.kv_write(&mut kv, k, v, &writes);
        let table = (0..blocks_each as u32).map(|t| (i * blocks_each) as u32 + t).collect();
        forward.push(AttnSpan { rows: span.rows.clone(), start: keys.len() - span.rows.len(), table });
    }
    b.attention(q, &kv, &forward, shape, out);
}

#[test]
fn attention_gradients_equal_the_reference() {
    for heads in HEADS {
        let spans = grad_spans();
        for window in WINDOWS {
            let shape = shape(*heads, window);
            let naive = attended_back(&Naive::new(), shape, &spans, 120);
            compare(&naive, |b| attended_back(b, shape, &spans, 120), assert_close);
        }
    }
}

const HEADS_OF_MODELS: &[(usize, usize, usize)] =
    &[(1, 20, 7), (3, 33, 2048), (60, 24, 2049), (5, 16, 5000), (300, 40, 100)];

fn headed<B: Backend>(b: &B, n: usize, width: usize, vocab: usize, temperature: f32, softcap: Option<f32>) -> Results {
    let hidden = b.upload(&random(1, n * width));
    let matrix = b.matrix(MatrixData::F32(&random(2, vocab * width)), vocab, width);
    let head = Head { matrix: &matrix, softcap };
    let targets: Vec<u32> = (0..n as u64).map(|i| seed::below(3, i, vocab as u64) as u32).collect();
    let scored = b.head_logprobs(&hidden, head, &targets, temperature);
    let (again, gradients) = b.head_gradients(&hidden, head, &targets, temperature);
    assert_eq!(scored, again);
    let mut back = b.zeros(n * width);
    b.head_backward(&hidden, head, &targets, temperature, &scored.lse, &vec![1.0; n], &mut back, None);
    assert_same_bits("gradients as the backward makes them", &b.download(&gradients), &b.download(&back));
    let mut scaled = gradients;
    b.scale_rows(&mut scaled, &random(7, n));
    vec![
        ("gradients".into(), b.download(&scaled)),
        ("logprobs".into(), scored.logprobs),
        ("lse".into(), scored.lse),
        ("entropy".into(), scored.entropy),
        ("logits".into(), b.logits(&hidden, head)),
    ]
}

fn headed_back<B: Backend>(
    b: &B,
    n: usize,
    width: usize,
    vocab: usize,
    temperature: f32,
    softcap: Option<f32>,
) -> Results {
    let hidden = b.upload(&random(1, n * width));
    let matrix = b.matrix(MatrixData::F32(&random(2, vocab * width)), vocab, width);
    let head = Head { matrix: &matrix, softcap };
    let targets: Vec<u32> = (0..n as u64).map(|i| seed::below(3, i, vocab as u64) as u32).collect();
    let lse = b.head_logprobs(&hidden, head, &targets, temperature).lse;
    let (mut dhidden, mut dhead) = (b.upload(&random(4, n * width)), b.upload(&random(5, vocab * width)));
    let dlogprobs = random(6, n);
    b.head_backward(&hidden, head, &targets, temperature, &lse, &dlogprobs, &mut dhidden, Some(&mut dhead));
    let mut alone = b.upload(&random(4, n * width));
    b.head_backward(&hidden, head, &targets, temperature, &lse, &dlogprobs, &mut alone, None);
    assert_same_bits("dhidden with and without dhead", &b.download(&alone), &b.download(&dhidden));
    vec![("dhidden".into(), b.download(&dhidden)), ("dhead".into(), b.download(&dhead))]
}

#[test]
fn head_equals_the_reference_bit_for_bit() {
    for (n, width, vocab) in HEADS_OF_MODELS {
        for (t, cap) in [(1.0, None), (0.7, None), (0.9, Some(5.0))] {
            let naive = headed(&Naive::new(), *n, *width, *vocab, t, cap);
            compare(&naive, |b| headed(b, *n, *width, *vocab, t, cap), assert_same_bits);
        }
    }
}

#[test]
fn head_gradients_equal_the_reference() {
    for (n, width, vocab) in HEADS_OF_MODELS {
        for (t, cap) in [(1.0, None), (0.7, None), (0.9, Some(5.0))] {
            let naive = headed_back(&Naive::new(), *n, *width, *vocab, t, cap);
            compare(&naive, |b| headed_back(b, *n, *width, *vocab, t, cap), assert_close);
        }
    }
}

fn specs(n: usize, vocab: usize) -> Vec<SampleSpec> {
    (0..n as u64)
        .map(|i| SampleSpec {
            temperature: [1.0, 0.0, 0.7, 1.3][i as usize % 4],
            top_k: [0, 0, 5, 40][i as usize / 4 % 4],
            top_p: [1.0, 0.9, 0.5][i as usize / 3 % 3],
            min_p: [0.0, 0.0, 0.05][i as usize / 5 % 3],
            repetition_penalty: [1.0, 1.2][i as usize / 2 % 2],
            seen: (0..6).map(|j| seed::below(9, i * 6 + j, vocab as u64) as u32).collect(),
            uniform: seed::uniform(8, i),
        })
        .collect()
}

/// The ids and log-probs that all rows give, drawn together and one at a time.
fn sampled<B: Backend>(b: &B, n: usize, width: usize, vocab: usize, softcap: Option<f32>) -> Results {
    let values = random(1, n * width);
    let matrix = b.matrix(MatrixData::F32(&random(2, vocab * width)), vocab, width);
    let head = Head { matrix: &matrix, softcap };
    let specs = specs(n, vocab);
    let together = b.sample(&b.upload(&values), head, &specs);
    for (r, spec) in specs.iter().enumerate() {
        let hidden = b.upload(&values[r * width..(r + 1) * width]);
        let alone = b.sample(&hidden, head, std::slice::from_ref(spec))[0];
        assert_eq!(alone, together[r], "row {r} alone and in company");
        let temperature = if spec.temperature == 0.0 { 1.0 } else { spec.temperature };
        let scored = b.head_logprobs(&hidden, head, &[alone.id], temperature);
        assert_same_bits("log-prob of sampler and learner", &[alone.logprob], &scored.logprobs);
    }
    vec![
        ("ids".into(), together.iter().map(|s| s.id as f32).collect()),
        ("logprobs".into(), together.iter().map(|s| s.logprob).collect()),
    ]
}

#[test]
fn sampling_equals_the_reference_and_the_learner_bit_for_bit() {
    for (n, width, vocab) in [(1, 20, 7), (70, 24, 2049), (40, 16, 5000)] {
        for cap in [None, Some(4.0)] {
            let naive = sampled(&Naive::new(), n, width, vocab, cap);
            compare(&naive, |b| sampled(b, n, width, vocab, cap), assert_same_bits);
        }
    }
}

/// Rows in any company and any order give the bits that they give alone.
#[test]
fn a_row_does_not_depend_on_its_batch() {
    let (inner, out, vocab, n) = (200, 330, 3000, 230);
    let values = random(1, n * inner);
    let (w, h) = (random(2, out * inner), random(3, vocab * inner));
    for b in cpus() {
        let (w, h) = (b.matrix(MatrixData::F32(&w), out, inner), b.matrix(MatrixData::F32(&h), vocab, inner));
        let run = |rows: &[usize]| {
            let x: Vec<f32> = rows.iter().flat_map(|r| values[r * inner..(r + 1) * inner].to_vec()).collect();
            let x = b.upload(&x);
            let mut y = b.alloc(rows.len() * out);
            b.linear(&x, &w, &mut y, 0..rows.len(), false);
            let targets: Vec<u32> = rows.iter().map(|r| (r * 13 % vocab) as u32).collect();
            (b.download(&y), b.head_logprobs(&x, (&h).into(), &targets, 0.9).logprobs)
        };
        let all: Vec<usize> = (0..n).collect();
        let (y, logprobs) = run(&all);
        for size in [1, 2, 3, 4, 6, 7, 50, 200] {
            let mut rows = all.clone();
            seed::shuffle(size as u64, &mut rows);
            rows.truncate(size);
            let (some, some_logprobs) = run(&rows);
            for (i, r) in rows.iter().enumerate() {
                assert_same_bits("linear", &some[i * out..(i + 1) * out], &y[r * out..(r + 1) * out]);
                assert_same_bits("logprob", &some_logprobs[i..=i], &logprobs[*r..=*r]);
            }
        }
    }
}
