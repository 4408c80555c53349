//! GGUF: blocks against the `gguf` package (`tests/parity/make_quants.py`), and files that we write.

mod common;

use std::{collections::HashMap, fs};

use candle_core::quantized::gguf_file;
use common::fixture;
use folgore_model::{
    ModelError,
    files::gguf::{self, Block, Field, Plan},
};

const DECODED: [Block; 10] = [
    Block::Q4_0,
    Block::Q4_1,
    Block::Q5_0,
    Block::Q5_1,
    Block::Q8_0,
    Block::Q2K,
    Block::Q3K,
    Block::Q4K,
    Block::Q5K,
    Block::Q6K,
];

fn bytes(name: &str) -> Vec<u8> {
    fs::read(fixture("quants").join(name)).unwrap()
}

fn floats(name: &str) -> Vec<f32> {
    Block::F32.decode(&bytes(name))
}

#[test]
fn every_block_decodes_as_the_gguf_package_does_to_the_bit() {
    for block in DECODED {
        let got = block.decode(&bytes(&format!("{}.blocks", block.name())));
        let want = floats(&format!("{}.f32", block.name()));
        assert_eq!(got.len(), want.len());
        assert!(want.iter().filter(|x| **x != 0.0).count() > want.len() / 2);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            // the sign of a zero apart, which the package loses in some types
            assert!(got.to_bits() == want.to_bits() || (*got == 0.0 && *want == 0.0), "{block:?} {i}: {got} {want}");
        }
    }
}

#[test]
fn simple_blocks_encode_as_the_gguf_package_does_to_the_bit() {
    let values = floats("values.f32");
    for block in [Block::F16, Block::Bf16, Block::Q8_0, Block::Q4_0, Block::Q5_0] {
        let got = block.encode(&values).unwrap();
        let want = bytes(&format!("{}.encoded", block.name()));
        let size = block.size().1;
        for (i, (got, want)) in got.chunks(size).zip(want.chunks(size)).enumerate() {
            assert_eq!(got, want, "{block:?}, block {i}");
        }
        assert_eq!(got.len(), want.len());
    }
}

fn squared_error(block: Block, values: &[f32], coded: &[u8]) -> f64 {
    let back = block.decode(coded);
    values.iter().zip(back).map(|(x, y)| f64::from(x - y).powi(2)).sum()
}

#[test]
fn what_is_encoded_comes_back_within_a_step() {
    let values = floats("values.f32");
    for (block, steps) in [(Block::Q8_0, 127.0), (Block::Q4_0, 8.0), (Block::Q5_0, 16.0)] {
        let coded = block.encode(&values).unwrap();
        for (values, back) in values.chunks(32).zip(block.decode(&coded).chunks(32)) {
            let most = values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let worst = values.iter().zip(back).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
            // a step of the block (half of one but for the end that a centred range lacks); the least scale that f16 holds
            assert!(worst <= 1.01 * most / steps + 1e-5, "{block:?}: {worst} of {most}");
        }
    }
}

#[test]
fn k_blocks_encode_as_ggml_does() {
    let values = floats("values.f32");
    for block in [Block::Q4K, Block::Q6K] {
        let (ours, theirs) = (block.encode(&values).unwrap(), bytes(&format!("{}.encoded", block.name())));
        let size = block.size().1;
        let mut equal = 0;
        for ((row, ours), theirs) in values.chunks(256).zip(ours.chunks(size)).zip(theirs.chunks(size)) {
            equal += usize::from(ours == theirs);
            // a compiler that adds in another order may choose another of two scales that are as good
            let (ours, theirs) = (squared_error(block, row, ours), squared_error(block, row, theirs));
            assert!(ours <= 1.001 * theirs + 1e-12, "{block:?}: {ours}, ggml {theirs}");
        }
        assert!(equal >= 5, "{block:?}: only {equal} of 8 blocks are ggml's");
    }
}

#[test]
fn what_a_block_cannot_hold_is_refused() {
    for block in [Block::F16, Block::Bf16, Block::Q8_0, Block::Q4_0, Block::Q4K, Block::Q6K] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![0.5; 256];
            values[77] = bad;
            assert_eq!(block.encode(&values), None, "{block:?} took {bad}");
        }
        assert!(block.encode(&[0.0; 256]).is_some_and(|coded| block.decode(&coded) == [0.0; 256]), "{block:?}");
    }
    assert_eq!(Block::F16.encode(&[1e6]), None);
    assert_eq!(Block::Q4_0.encode(&[1e9; 32]), None);
    assert_eq!(Block::Q4K.encode(&[0.0; 255]), None);
    assert_eq!(Block::Q3K.encode(&[0.0; 256]), None);
}

fn plan(name: &str, shape: &[usize], block: Block) -> Plan {
    Plan { name: name.into(), shape: shape.to_vec(), block }
}

#[test]
fn a_written_file_is_read_by_others_as_it_was_meant() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let list = |items: Vec<Field>| Field::List(items);
    let fields = [
        ("u8", Field::U8(200)),
        ("i8", Field::I8(-100)),
        ("u16", Field::U16(60_000)),
        ("i16", Field::I16(-30_000)),
        ("u32", Field::U32(4_000_000_000)),
        ("i32", Field::I32(-2_000_000_000)),
        ("f32", Field::F32(0.1)),
        ("bool", Field::Bool(true)),
        ("text", "é🙂".into()),
        ("texts", list(vec!["a".into(), "".into()])),
        ("floats", list(vec![Field::F32(1.5), Field::F32(-2.0)])),
        ("none", list(vec![])),
        ("u64", Field::U64(1 << 60)),
        ("i64", Field::I64(-(1 << 60))),
        ("f64", Field::F64(0.1)),
    ];
    let fields: Vec<(String, Field)> = fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let plans = [plan("odd", &[3], Block::F32), plan("m", &[2, 256], Block::Q4K), plan("h", &[5, 1], Block::F16)];
    let values = |plan: &Plan| Ok((0..plan.shape.iter().product::<usize>()).map(|i| i as f32 / 8.0).collect());
    gguf::write(&path, &fields, &plans, values).unwrap();
    let mut file = fs::File::open(&path).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    let read: HashMap<&str, &gguf_file::Value> = content.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    assert_eq!(read.len(), fields.len());
    assert_eq!((read["u8"].to_u8().unwrap(), read["i8"].to_i8().unwrap()), (200, -100));
    assert_eq!((read["u16"].to_u16().unwrap(), read["i16"].to_i16().unwrap()), (60_000, -30_000));
    assert_eq!((read["u32"].to_u32().unwrap(), read["i32"].to_i32().unwrap()), (4_000_000_000, -2_000_000_000));
    assert_eq!((read["u64"].to_u64().unwrap(), read["i64"].to_i64().unwrap()), (1 << 60, -(1 << 60)));
    assert_eq!((read["f32"].to_f32().unwrap(), read["f64"].to_f64().unwrap()), (0.1, 0.1));
    assert!(read["bool"].to_bool().unwrap());
    assert_eq!(read["text"].to_string().unwrap(), "é🙂");
    assert_eq!(read["texts"].to_vec().unwrap().len(), 2);
    assert_eq!(read["floats"].to_vec().unwrap()[1].to_f32().unwrap(), -2.0);
    assert!(read["none"].to_vec().unwrap().is_empty());
    for plan in &plans {
        let tensor = content.tensor(&mut file, &plan.name, &candle_core::Device::Cpu).unwrap();
        assert_eq!(tensor.shape().dims(), plan.shape);
        let back =
            tensor.dequantize(&candle_core::Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (want, got) in values(plan).unwrap().iter().zip(back) {
            assert!(
                (want - got).abs() <= if plan.block == Block::Q4K { 2.5 } else { 0.0 },
                "{}: {want} {got}",
                plan.name
            );
        }
    }
}

#[test]
fn what_cannot_be_written_is_named_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let two = [("k".to_owned(), Field::U8(1)), ("k".to_owned(), Field::U8(2))];
    let mixed = [("k".to_owned(), Field::List(vec![Field::U8(1), Field::I8(1)]))];
    let nested = [("k".to_owned(), Field::List(vec![Field::List(vec![])]))];
    let one = plan("w", &[2, 32], Block::Q8_0);
    let fails = |fields: &[(String, Field)], plans: &[Plan], values: Vec<f32>| {
        let mut left = Some(values);
        gguf::write(&path, fields, plans, |_| Ok(left.take().unwrap())).unwrap_err().to_string()
    };
    for (error, text) in [
        (fails(&two, &[], vec![]), "k: expected one entry"),
        (fails(&mixed, &[], vec![]), "k: expected a list of one type"),
        (fails(&nested, &[], vec![]), "k: expected a list of one type"),
        (fails(&[], &[one.clone(), one.clone()], vec![]), "w: expected one entry"),
        (fails(&[], &[plan("w", &[32, 2], Block::Q8_0)], vec![]), "shape of w: expected rows of whole Q8_0 blocks"),
        (fails(&[], std::slice::from_ref(&one), vec![1.0; 63]), "values of w: expected 64, got 63"),
        (fails(&[], std::slice::from_ref(&one), vec![f32::NAN; 64]), "tensor w: expected what Q8_0 can hold, got NaN"),
        (
            fails(&[], &[plan("w", &[1], Block::F16)], vec![1e6]),
            "tensor w: expected what F16 can hold, got values up to 1e6",
        ),
    ] {
        assert!(error.contains(text), "{error}");
    }
    let fault = ModelError::Tokenizer("source failed".into()).to_string();
    let broken = gguf::write(&path, &[], &[one], |_| Err(ModelError::Tokenizer("source failed".into())));
    assert_eq!(broken.unwrap_err().to_string(), fault);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
