//! The key-value cache of one layer.
//!
//! In each block and for each key head, keys are stored turned, `[head_dim][16 keys]`, so that lanes are keys when scores
//! are taken; values are stored `[16 keys][padded]`, so that lanes are numbers of the head when they are summed.

use std::ops::Range;

use half::bf16;

use super::{
    Cpu,
    buffer::CpuBuf,
    isa::{Checked, kernel},
    simd::Simd,
    team::{Parts, Team},
};
use crate::backend::{BLOCK, Heads, KvPrecision, lanes::LANES};

/// Keys and values of one layer.
#[derive(Debug)]
pub struct CpuKv {
    pub(super) heads: Heads,
    /// `head_dim` rounded up to whole vectors.
    pub(super) padded: usize,
    held: Held,
}

#[derive(Debug)]
enum Held {
    F32 { k: CpuBuf, v: CpuBuf },
    Bf16 { k: Vec<u16>, v: Vec<u16> },
}

#[inline(always)]
fn widen_in<S: Simd>(s: S, from: &[u16], to: &mut [f32]) {
    for (from, to) in from.chunks_exact(LANES).zip(to.chunks_exact_mut(LANES)) {
        // SAFETY: sixteen numbers.
        s.store(to, unsafe { s.read_bf16(from.as_ptr()) });
    }
}

kernel!(fn widen = widen_in(from: &[u16], to: &mut [f32]));

/// A block of bfloat16 numbers, in `room`.
fn widened<'a>(isa: Checked, from: &[u16], room: &'a mut Vec<f32>) -> &'a [f32] {
    room.resize(from.len(), 0.0);
    widen(isa, from, room);
    room
}

impl CpuKv {
    pub(super) fn new(cpu: &Cpu, blocks: usize, heads: Heads, precision: KvPrecision) -> Self {
        let padded = heads.head_dim.next_multiple_of(LANES);
        let slabs = blocks * heads.kv_heads * BLOCK;
        let (k, v) = (slabs * heads.head_dim, slabs * padded);
        let held = match precision {
            KvPrecision::F32 => Held::F32 { k: cpu.buffers.zeros(k), v: cpu.buffers.zeros(v) },
            KvPrecision::Bf16 => Held::Bf16 { k: vec![0; k], v: vec![0; v] },
        };
        Self { heads, padded, held }
    }

    pub(super) fn write(&mut self, team: &Team, k: &[f32], v: &[f32], writes: &[(u32, u32)]) {
        let (heads, padded) = (self.heads, self.padded);
        match &mut self.held {
            Held::F32 { k: keys, v: values } => write(team, (keys, values), (k, v), writes, heads, padded, |x| x),
            Held::Bf16 { k: keys, v: values } => {
                write(team, (keys, values), (k, v), writes, heads, padded, |x| bf16::from_f32(x).to_bits());
            }
        }
    }

    pub(super) fn copy(&mut self, copies: &[(u32, u32)]) {
        let slabs = self.heads.kv_heads * BLOCK;
        let (k_block, v_block) = (slabs * self.heads.head_dim, slabs * self.padded);
        for (from, to) in copies {
            let (from, to) = (*from as usize, *to as usize);
            let (k_from, v_from) = (from * k_block..(from + 1) * k_block, from * v_block..(from + 1) * v_block);
            match &mut self.held {
                Held::F32 { k, v } => {
                    k.copy_within(k_from, to * k_block);
                    v.copy_within(v_from, to * v_block);
                }
                Held::Bf16 { k, v } => {
                    k.copy_within(k_from, to * k_block);
                    v.copy_within(v_from, to * v_block);
                }
            }
        }
    }

    fn keys_at(&self, block: u32, head: usize) -> Range<usize> {
        let (size, slab) = (BLOCK * self.heads.head_dim, block as usize * self.heads.kv_heads + head);
        slab * size..(slab + 1) * size
    }

    fn values_at(&self, block: u32, head: usize) -> Range<usize> {
        let (size, slab) = (BLOCK * self.padded, block as usize * self.heads.kv_heads + head);
        slab * size..(slab + 1) * size
    }

    /// Where keys of a block lie, if they are read from there.
    pub(super) fn keys_in_memory(&self, block: u32, head: usize) -> Option<*const f32> {
        match &self.held {
            Held::F32 { k, .. } => Some(k[self.keys_at(block, head)].as_ptr()),
            Held::Bf16 { .. } => None,
        }
    }

    /// As [`Self::keys_in_memory`], of values.
    pub(super) fn values_in_memory(&self, block: u32, head: usize) -> Option<*const f32> {
        match &self.held {
            Held::F32 { v, .. } => Some(v[self.values_at(block, head)].as_ptr()),
            Held::Bf16 { .. } => None,
        }
    }

    /// Keys of a block, `[head_dim][16]`; `room` is for those that have to be decoded.
    pub(super) fn keys<'a>(&'a self, isa: Checked, block: u32, head: usize, room: &'a mut Vec<f32>) -> &'a [f32] {
        match &self.held {
            Held::F32 { k, .. } => &k[self.keys_at(block, head)],
            Held::Bf16 { k, .. } => widened(isa, &k[self.keys_at(block, head)], room),
        }
    }

    /// Values of a block, `[16][padded]`.
    pub(super) fn values<'a>(&'a self, isa: Checked, block: u32, head: usize, room: &'a mut Vec<f32>) -> &'a [f32] {
        match &self.held {
            Held::F32 { v, .. } => &v[self.values_at(block, head)],
            Held::Bf16 { v, .. } => widened(isa, &v[self.values_at(block, head)], room),
        }
    }
}

/// Puts rows of keys and values where they belong, each number as `number` holds it. A task has the slabs (a head's share of a block)
/// of one remainder, so what is written to one place is written in order.
fn write<T: Send>(
    team: &Team,
    (keys, values): (&mut [T], &mut [T]),
    (k, v): (&[f32], &[f32]),
    writes: &[(u32, u32)],
    Heads { kv_heads, head_dim, .. }: Heads,
    padded: usize,
    number: impl Fn(f32) -> T + Sync,
) {
    let (keys, values) = (Parts::new(keys), Parts::new(values));
    let tasks = team.hands();
    // a key's numbers lie in as many cache lines
    let work = 4 * writes.len() * kv_heads * head_dim;
    team.run(tasks, work, |task| {
        for (row, slot) in writes {
            let (block, lane) = (*slot as usize / BLOCK, *slot as usize % BLOCK);
            for head in 0..kv_heads {
                let slab = block * kv_heads + head;
                if slab % tasks != task {
                    continue;
                }
                let from = (*row as usize * kv_heads + head) * head_dim;
                let (keys_at, value_at) = (slab * BLOCK * head_dim, (slab * BLOCK + lane) * padded);
                // SAFETY: a slab belongs to one task.
                let (turned, to) = unsafe {
                    (keys.part(keys_at..keys_at + BLOCK * head_dim), values.part(value_at..value_at + head_dim))
                };
                let turned = turned.chunks_exact_mut(BLOCK);
                turned.zip(&k[from..from + head_dim]).for_each(|(lanes, k)| lanes[lane] = number(*k));
                to.iter_mut().zip(&v[from..from + head_dim]).for_each(|(to, v)| *to = number(*v));
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_in_bfloat16_takes_half_the_bytes() {
        let (cpu, heads) = (Cpu::new(), Heads { heads: 4, kv_heads: 2, head_dim: 24 });
        let bytes = |precision| match CpuKv::new(&cpu, 5, heads, precision).held {
            Held::F32 { k, v } => size_of_val(&k[..]) + size_of_val(&v[..]),
            Held::Bf16 { k, v } => size_of_val(&k[..]) + size_of_val(&v[..]),
        };
        assert_eq!(bytes(KvPrecision::F32), 5 * 16 * 2 * (24 + 32) * 4);
        assert_eq!(bytes(KvPrecision::Bf16) * 2, bytes(KvPrecision::F32));
    }
}
