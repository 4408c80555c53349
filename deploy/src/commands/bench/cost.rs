//! What a call of the model has to do at the least: arithmetic and reading.
//!
//! With P the weights of the layers' linear maps, A those of the adapter, V = vocabulary times hidden size, L layers and
//! q = heads times head size, in multiply-adds counted as two operations:
//!
//! - forward, per token: `2 (P + A) + 4 L q keys`, keys being those that the token sees; per scored token `2 V` more;
//! - backward with a frozen base, per token: `2 P + 4 A + 8 L q keys` (no gradient for the frozen weights); per scored token
//!   `2 V` more. Nothing that is computed again is counted.
//! - reading, per call: every weight of the layers and of the head once, as it lies in memory, and the keys and values of
//!   every sequence once.
//!
//! Sliding windows are left out of account: every layer is taken to see all keys.
//!
//! A call takes at least `max(operations / gemm ceiling, bytes / reading ceiling)`; a measurement's share is the sum of
//! that over its calls, divided by the time it took.

use folgore_model::{ModelConfig, decoder::Linear, lora::LoraShape};
use serde::Serialize;

use super::ceiling::Ceilings;

/// Operations and bytes of one call of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Call {
    /// Floating-point operations.
    pub flops: f64,
    /// Bytes read.
    pub bytes: f64,
}

impl Call {
    /// The least time it takes under `ceilings`, in seconds.
    pub fn seconds(self, ceilings: &Ceilings) -> f64 {
        (self.flops / ceilings.gemm_gflops).max(self.bytes / ceilings.read_gbps) / 1e9
    }

    /// True if arithmetic is what takes that time.
    pub fn is_arithmetic(self, ceilings: &Ceilings) -> bool {
        self.flops / ceilings.gemm_gflops >= self.bytes / ceilings.read_gbps
    }
}

/// The counts of a model.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    layers: f64,
    adapter: f64,
    head: f64,
    attention: f64,
    weight_bytes: f64,
    key_bytes: f64,
}

impl Costs {
    /// Of a model of shape `config` with an adapter of `shape`; `weight_bytes` is what the weights take in memory that every call
    /// reads: not an embedding of its own, which is looked up.
    pub fn of(config: &ModelConfig, shape: Option<&LoraShape>, weight_bytes: usize) -> Self {
        let linears: usize = Linear::ALL.into_iter().map(|l| l.shape(config)).map(|(out, inner)| out * inner).sum();
        let table = config.vocab_size * config.hidden_size;
        let layers = config.num_hidden_layers as f64;
        Self {
            layers: linears as f64 * layers,
            adapter: shape.map_or(0.0, |s| s.parameters(config) as f64),
            head: table as f64,
            attention: layers * (config.num_attention_heads * config.head_dim) as f64,
            weight_bytes: weight_bytes as f64,
            key_bytes: layers * (2 * 4 * config.num_key_value_heads * config.head_dim) as f64,
        }
    }

    /// A forward of `tokens` tokens that see `seen` keys together, in sequences that hold `held` keys; `scored` of them
    /// go through the head.
    pub fn forward(&self, tokens: f64, seen: f64, held: f64, scored: f64) -> Call {
        let flops =
            2.0 * tokens * (self.layers + self.adapter) + 4.0 * self.attention * seen + 2.0 * scored * self.head;
        Call { flops, bytes: self.weight_bytes + 4.0 * self.adapter + held * self.key_bytes }
    }

    /// The backward of such a forward.
    pub fn backward(&self, tokens: f64, seen: f64, held: f64, scored: f64) -> Call {
        let forward = self.forward(tokens, seen, held, scored);
        let flops = forward.flops + 2.0 * tokens * self.adapter + 4.0 * self.attention * seen;
        Call { flops, ..forward }
    }
}

/// Keys that the tokens `begin..end` of a sequence see together.
pub fn seen(begin: usize, end: usize) -> f64 {
    (begin..end).map(|place| (place + 1) as f64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smollm2_is_counted_as_by_hand() {
        let config = ModelConfig::smollm2_135m();
        let costs = Costs::of(&config, None, 0);
        // 106.2 million weights in the layers, 28.3 million in the head
        let per_layer = 2 * 576 * 576 + 2 * 192 * 576 + 3 * 1536 * 576;
        assert_eq!(costs.layers, f64::from(30 * per_layer));
        assert_eq!(costs.forward(1.0, 0.0, 0.0, 1.0).flops, 2.0 * f64::from(30 * per_layer + 49_152 * 576));
        let attention = costs.forward(0.0, 10.0, 0.0, 0.0).flops;
        assert_eq!(attention, f64::from(4 * 30 * 576 * 10));
        assert_eq!(costs.backward(0.0, 10.0, 0.0, 0.0).flops, 2.0 * attention);
        // four key bytes and four value bytes for each of 192 numbers in 30 layers
        assert_eq!(costs.forward(0.0, 0.0, 1.0, 0.0).bytes, f64::from(8 * 192 * 30));
    }

    #[test]
    fn an_adapter_adds_its_weights_once_forward_and_twice_backward() {
        let config = ModelConfig::smollm2_135m();
        let shape = super::super::subject::shape();
        let (plain, with) = (Costs::of(&config, None, 0), Costs::of(&config, Some(&shape), 0));
        // the number that PEFT prints for this adapter
        assert_eq!(with.adapter, 4_884_480.0);
        assert_eq!(
            with.forward(1.0, 0.0, 0.0, 0.0).flops - plain.forward(1.0, 0.0, 0.0, 0.0).flops,
            2.0 * with.adapter
        );
        assert_eq!(
            with.backward(1.0, 0.0, 0.0, 0.0).flops - plain.backward(1.0, 0.0, 0.0, 0.0).flops,
            4.0 * with.adapter
        );
    }

    #[test]
    fn the_slower_of_the_two_ceilings_binds() {
        let ceilings =
            Ceilings { gemm_gflops: 100.0, gemm_gflops_1_thread: 50.0, read_gbps: 10.0, read_gbps_1_thread: 8.0 };
        let call = Call { flops: 2e9, bytes: 1e9 };
        assert_eq!((call.seconds(&ceilings), call.is_arithmetic(&ceilings)), (0.1, false));
        let call = Call { flops: 2e10, bytes: 1e9 };
        assert_eq!((call.seconds(&ceilings), call.is_arithmetic(&ceilings)), (0.2, true));
        assert_eq!(seen(2, 4), 7.0);
    }
}
