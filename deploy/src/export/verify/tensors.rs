//! Every tensor, and every row of it: each at the exactness of its own coding.

use std::collections::BTreeMap;

use anyhow::Result;
use folgore_model::{
    HostTensor, ModelConfig, NormForm, TensorSource,
    decoder::tensors,
    export::Merged,
    files::{ModelFiles, gguf::Block, peft::AdapterFile},
};

use crate::export::{
    Source, Verified,
    reopen::Reopened,
    report::{Kind, Worst},
};

/// A row whose norm is less than this share of a row's norm in the mean is measured by that share: what is next to nothing may
/// be coded as nothing.
const SHORT: f64 = 0.1;

/// What a coding may cost a tensor on the whole, and one row of it; root mean squares of the difference, relative.
///
/// F32 is exact, but for a factor that is taken in. The others are above what real weights show on the whole. Of a row, theory
/// bounds what the plain codings can lose: 2^-11 (F16; more where numbers are below its normal ones) and 2^-9 (BF16) of each
/// number; half of the largest of 32 numbers over 127 (Q8_0), 8 (Q4_0) or 16 (Q5_0), which is the most where the others are
/// next to nothing: times sqrt(32). The worst rows of SmolLM2-135M are 0.014, 0.19 and 0.12 off. Q4_K and Q6_K have no such
/// bound that is of use. Q4_K, whose steps are no coarser, is given that of Q4_0; Q6_K four times the worst row measured
/// (0.031). A row in another's place is off by 1.4, one that is missing by 1.
fn bound(block: Block) -> (f64, f64) {
    match block {
        Block::F32 => (1e-6, 1e-6),
        Block::F16 => (1e-3, 0.01),
        Block::Bf16 => (5e-3, 5e-3),
        Block::Q8_0 => (0.015, 0.025),
        Block::Q4_0 => (0.15, 0.36),
        Block::Q5_0 => (0.08, 0.18),
        Block::Q6K => (0.04, 0.12),
        // the coarsest that is written
        _ => (0.12, 0.36),
    }
}

/// Compares the weights of an export, and the adapter where it is apart. Gives what is wrong beyond single tensors.
pub(super) fn compare(
    found: &mut Verified,
    source: &Source,
    kind: Kind,
    base: &ModelFiles,
    reopened: &Reopened,
) -> Result<Option<String>> {
    let (config, mut lost) = (&base.config, None);
    if reopened.own_model {
        let adapter = if reopened.adapter.is_some() { None } else { Some(&source.adapter) };
        let merged = Merged::new(&*base.tensors, config, adapter)?;
        weights(found, kind, config, &merged, &*reopened.model.tensors)?;
        if adapter.is_some() {
            let share = share(config, &*base.tensors, &merged, &*reopened.model.tensors)?;
            found.adapter_kept = share.kept();
            lost = share.fault();
        }
    }
    if let Some(adapter) = &reopened.adapter {
        lost = pairs(found, kind.adapter_block(), config, &source.adapter, adapter)?;
    }
    Ok(lost)
}

fn weights(
    found: &mut Verified,
    kind: Kind,
    config: &ModelConfig,
    ours: &dyn TensorSource,
    theirs: &dyn TensorSource,
) -> Result<()> {
    for (name, shape) in tensors(config) {
        let block = kind.block_of(&name, &shape, config);
        // such a norm multiplies by one more than its weight, and so GGUF has it
        let one_more = config.variant.norm_form == NormForm::OnePlusWeight && name.ends_with("norm.weight");
        let of = |source: &dyn TensorSource| {
            source.tensor(&name).map(|tensor| match one_more {
                true => HostTensor::f32(tensor.shape.clone(), tensor.to_f32().iter().map(|w| w + 1.0).collect()),
                false => tensor,
            })
        };
        judge(found, block, &name, &of(ours)?, &of(theirs)?)?;
    }
    Ok(())
}

/// An adapter by its own matrices, the scale in B, so that what it belongs to does not hide it.
fn pairs(
    found: &mut Verified,
    block: Block,
    config: &ModelConfig,
    ours: &AdapterFile,
    theirs: &AdapterFile,
) -> Result<Option<String>> {
    let (ours, theirs) = (scaled(ours, config), scaled(theirs, config));
    for (name, tensor) in &ours {
        match theirs.get(name) {
            Some(other) => judge(found, block, name, tensor, other)?,
            None => return Ok(Some(format!("tensor {name} of the adapter: expected it, got none"))),
        }
    }
    let more = theirs.keys().find(|name| !ours.contains_key(*name));
    Ok(more.map(|name| format!("tensor {name} of the adapter: expected none, got it")))
}

fn scaled(file: &AdapterFile, config: &ModelConfig) -> BTreeMap<String, HostTensor> {
    let mut list = file.tensors.clone();
    for (layer, linear, rank) in file.config.shape().modules(config.num_hidden_layers) {
        if let Some(b) = list.get_mut(&format!("{}.lora_B", linear.module(layer))) {
            *b = HostTensor::f32(b.shape.clone(), b.to_f32().iter().map(|w| w * rank.scale).collect());
        }
    }
    list
}

fn judge(found: &mut Verified, block: Block, name: &str, ours: &HostTensor, theirs: &HostTensor) -> Result<()> {
    anyhow::ensure!(
        ours.shape == theirs.shape,
        "tensor {name}: expected shape {:?}, got {:?}",
        ours.shape,
        theirs.shape
    );
    let (whole, row) = bound(block);
    let width = ours.shape.last().copied().unwrap_or(1).max(1);
    let (ours, theirs) = (ours.to_f32(), theirs.to_f32());
    let rows: Vec<(f64, f64)> = ours.chunks(width).zip(theirs.chunks(width)).map(|(a, b)| squares(a, b)).collect();
    let (off, all) = rows.iter().fold((0.0, 0.0), |(off, all), row| (off + row.0, all + row.1));
    found.tensors.see(relative(off, all), whole, || name.to_owned());
    let least = SHORT * SHORT * all / rows.len().max(1) as f64;
    for (i, (off, all)) in rows.iter().enumerate().filter(|_| rows.len() > 1) {
        found.rows.see(relative(*off, all.max(least)), row, || format!("{name}[{i}]"));
    }
    Ok(())
}

/// The sum of the squares of the differences, and that of `ours`.
fn squares(ours: &[f32], theirs: &[f32]) -> (f64, f64) {
    let square = |v: f32| f64::from(v) * f64::from(v);
    ours.iter().zip(theirs).fold((0.0, 0.0), |(off, all), (a, b)| (off + square(a - b), all + square(*a)))
}

fn relative(off: f64, all: f64) -> f64 {
    match (off, all) {
        (0.0, _) => 0.0,
        (_, 0.0) => f64::INFINITY,
        _ => (off / all).sqrt(),
    }
}

impl Worst {
    /// Takes an error in if it is further beyond its bound than the worst one; not a number is beyond every bound.
    fn see(&mut self, error: f64, bound: f64, name: impl Fn() -> String) {
        let ratio = |error: f64, bound: f64| if error.is_nan() { f64::INFINITY } else { error / bound };
        if self.name.is_empty() || ratio(error, bound) > ratio(self.error, self.bound) {
            *self = Self { error, bound, name: name() };
        }
    }
}

fn share(
    config: &ModelConfig,
    base: &dyn TensorSource,
    merged: &dyn TensorSource,
    export: &dyn TensorSource,
) -> Result<Share> {
    let mut share = Share::default();
    for (name, _) in tensors(config).into_iter().filter(|(name, _)| name.contains("_proj.")) {
        let read = |source: &dyn TensorSource| source.tensor(&name).map(|tensor| tensor.to_f32());
        share.add(&read(base)?, &read(merged)?, &read(export)?);
    }
    Ok(share)
}

/// How much of what an adapter adds to the weights is in an export. Coding errors have nothing to do with the adapter, so that
/// they average out over its weights, also where each of them is larger than what the adapter adds.
#[derive(Default)]
struct Share {
    /// Of the export's change to the base and the adapter's: their product,
    along: f64,
    /// the square of the adapter's,
    adapter: f64,
    /// and that of their difference, which the coding makes.
    coding: f64,
    weights: f64,
}

impl Share {
    fn add(&mut self, base: &[f32], merged: &[f32], export: &[f32]) {
        for ((base, merged), export) in base.iter().zip(merged).zip(export) {
            let (adapter, change) = (f64::from(merged - base), f64::from(export - base));
            self.along += change * adapter;
            self.adapter += adapter * adapter;
            self.coding += (change - adapter) * (change - adapter);
        }
        self.weights += base.len() as f64;
    }

    /// 1 but for the coding's noise; none without an adapter.
    fn kept(&self) -> Option<f64> {
        (self.adapter > 0.0).then(|| self.along / self.adapter)
    }

    fn fault(&self) -> Option<String> {
        let kept = self.kept()?;
        let noise = (self.coding / self.weights / self.adapter).sqrt();
        // five deviations: where that is more than the whole adapter, nothing can be told
        let most = (5.0 * noise).max(0.2);
        let lost = kept.is_nan() || most < 1.0 && (kept - 1.0).abs() > most;
        lost.then(|| format!("share of the adapter in the weights: expected 1 ± {most:.2}, got {kept:.2}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Normal numbers, one in a hundred of them ten times as large.
    fn weights(rows: usize, width: usize) -> HostTensor {
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1u64 << 24) as f64
        };
        let mut draw = || {
            let normal = (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
            (normal * if uniform() < 0.01 { 0.2 } else { 0.02 }) as f32
        };
        HostTensor::f32([rows, width], (0..rows * width).map(|_| draw()).collect())
    }

    fn coded(block: Block, tensor: &HostTensor) -> HostTensor {
        HostTensor::f32(tensor.shape.clone(), block.decode(&block.encode(&tensor.to_f32()).unwrap()))
    }

    fn found(block: Block, ours: &HostTensor, theirs: &HostTensor) -> (Worst, Worst) {
        let mut found = Verified::default();
        judge(&mut found, block, "t", ours, theirs).unwrap();
        (found.tensors, found.rows)
    }

    #[test]
    fn codings_are_within_their_bounds_and_a_wrong_row_is_not() {
        let tensor = weights(1500, 256);
        for block in
            [Block::F32, Block::F16, Block::Bf16, Block::Q8_0, Block::Q4_0, Block::Q5_0, Block::Q4K, Block::Q6K]
        {
            let good = coded(block, &tensor);
            let (whole, row) = found(block, &tensor, &good);
            assert!(whole.error <= whole.bound && row.error <= row.bound, "{block:?}: {whole:?} {row:?}");
            // one of 1500 rows is another one: on the whole that may be less than the coding costs
            let mut values = good.to_f32();
            values.copy_within(0..256, 7 * 256);
            let (whole, row) = found(block, &tensor, &HostTensor::f32([1500, 256], values));
            assert!(row.error > row.bound && row.name == "t[7]", "{block:?}: {row:?}");
            assert!(!matches!(block, Block::Q4_0 | Block::Q4K) || whole.error <= whole.bound, "{block:?}: {whole:?}");
        }
    }

    #[test]
    fn the_coarsest_rows_that_there_are_stay_within_the_bounds_of_theory() {
        for (block, levels) in [(Block::Q8_0, 127.0f32), (Block::Q4_0, 8.0), (Block::Q5_0, 16.0)] {
            // one large number a block, the others right between two steps
            let step = 1.0 / levels;
            let row: Vec<f32> = (0..512).map(|i| if i % 32 == 0 { -1.0 } else { step * 0.499 }).collect();
            let tensor = HostTensor::f32([2, 512], [row.clone(), row].concat());
            let (_, row) = found(block, &tensor, &coded(block, &tensor));
            assert!(row.error <= row.bound && row.error > row.bound / 3.0, "{block:?}: {row:?}");
        }
    }

    #[test]
    fn a_row_that_is_next_to_nothing_may_be_nothing() {
        let mut values = weights(20, 64).to_f32();
        values[..64].iter_mut().for_each(|w| *w *= 1e-9);
        let tensor = HostTensor::f32([20, 64], values);
        let (_, row) = found(Block::F16, &tensor, &coded(Block::F16, &tensor));
        assert!(row.error <= row.bound, "{row:?}");
    }

    #[test]
    fn not_a_number_is_the_worst() {
        let tensor = weights(2, 32);
        let mut values = tensor.to_f32();
        values[3] = f32::NAN;
        let (whole, row) = found(Block::Q4_0, &tensor, &HostTensor::f32([2, 32], values));
        assert!(whole.error.is_nan() && row.error.is_nan());
        let mut worst = whole;
        worst.see(f64::INFINITY, 1.0, || "other".into());
        assert_eq!(worst.name, "t");
    }
}
