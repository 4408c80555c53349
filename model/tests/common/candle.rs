//! The decoder in candle's composed operations, whose autograd gives the gradients to compare with (its fused ones have no backward).

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Tensor, Var};
use folgore_model::{HostTensor, ModelConfig, Tensors, decoder::Linear};

/// A plain Llama, with an adapter or without.
pub struct Oracle {
    vars: BTreeMap<String, Var>,
    config: ModelConfig,
    scale: f64,
}

impl Oracle {
    /// Of `tensors`, an adapter's among them if there is one, whose scale is `scale`.
    pub fn new(config: &ModelConfig, tensors: &[&Tensors], scale: f64) -> Self {
        let var = |t: &HostTensor| {
            let values: Vec<f64> = t.to_f32().into_iter().map(f64::from).collect();
            Var::from_tensor(&Tensor::from_vec(values, t.shape.clone(), &Device::Cpu).unwrap()).unwrap()
        };
        let vars = tensors.iter().flat_map(|t| t.iter()).map(|(name, t)| (name.clone(), var(t))).collect();
        Self { vars, config: config.clone(), scale }
    }

    fn get(&self, name: &str) -> &Tensor {
        self.vars[name].as_tensor()
    }

    fn linear(&self, layer: usize, l: Linear, x: &Tensor) -> Tensor {
        let module = l.module(layer);
        let y = x.matmul(&self.get(&format!("{module}.weight")).t().unwrap()).unwrap();
        if !self.vars.contains_key(&format!("{module}.lora_A")) {
            return y;
        }
        let low = x.matmul(&self.get(&format!("{module}.lora_A")).t().unwrap()).unwrap();
        let delta = low.matmul(&self.get(&format!("{module}.lora_B")).t().unwrap()).unwrap();
        (y + (delta * self.scale).unwrap()).unwrap()
    }

    fn norm(&self, x: &Tensor, name: &str) -> Tensor {
        let mean = x.sqr().unwrap().mean_keepdim(D::Minus1).unwrap();
        let root = (mean + f64::from(self.config.rms_norm_eps)).unwrap().sqrt().unwrap();
        x.broadcast_div(&root).unwrap().broadcast_mul(self.get(name)).unwrap()
    }

    /// [heads, tokens, head_dim] with rotate_half rope.
    fn heads(&self, x: &Tensor, heads: usize, rope: bool) -> Tensor {
        let (n, d) = (x.dim(0).unwrap(), self.config.head_dim);
        let x = x.reshape((n, heads, d)).unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
        if !rope {
            return x;
        }
        let half = d / 2;
        let angle = |p: usize, i: usize| p as f64 * f64::from(self.config.rope_theta).powf(-2.0 * i as f64 / d as f64);
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f64> =
                (0..n).flat_map(|p| (0..half).map(move |i| (p, i))).map(|(p, i)| f(angle(p, i))).collect();
            Tensor::from_vec(values, (1, n, half), &Device::Cpu).unwrap()
        };
        let (cos, sin) = (table(f64::cos), table(f64::sin));
        let (a, b) = (x.narrow(2, 0, half).unwrap(), x.narrow(2, half, half).unwrap());
        let left = (a.broadcast_mul(&cos).unwrap() - b.broadcast_mul(&sin).unwrap()).unwrap();
        let right = (b.broadcast_mul(&cos).unwrap() + a.broadcast_mul(&sin).unwrap()).unwrap();
        Tensor::cat(&[left, right], 2).unwrap()
    }

    /// Log-probs of every token after the first.
    pub fn logprobs(&self, ids: &[u32], temperature: f64) -> Tensor {
        let (c, n) = (&self.config, ids.len());
        let index = Tensor::new(ids, &Device::Cpu).unwrap();
        let mut x = self.get("model.embed_tokens.weight").index_select(&index, 0).unwrap();
        let mask: Vec<f64> =
            (0..n).flat_map(|i| (0..n).map(move |j| if j <= i { 0.0 } else { f64::NEG_INFINITY })).collect();
        let mask = Tensor::from_vec(mask, (1, n, n), &Device::Cpu).unwrap();
        for layer in 0..c.num_hidden_layers {
            let h = self.norm(&x, &format!("model.layers.{layer}.input_layernorm.weight"));
            let q = self.heads(&self.linear(layer, Linear::QProj, &h), c.num_attention_heads, true);
            let group = c.num_attention_heads / c.num_key_value_heads;
            let spread = |t: Tensor| {
                let index: Vec<u32> = (0..c.num_attention_heads).map(|h| (h / group) as u32).collect();
                t.index_select(&Tensor::new(index.as_slice(), &Device::Cpu).unwrap(), 0).unwrap()
            };
            let k = spread(self.heads(&self.linear(layer, Linear::KProj, &h), c.num_key_value_heads, true));
            let v = spread(self.heads(&self.linear(layer, Linear::VProj, &h), c.num_key_value_heads, false));
            let scores = (q.matmul(&k.transpose(1, 2).unwrap()).unwrap() / (c.head_dim as f64).sqrt()).unwrap();
            let scores = scores.broadcast_add(&mask).unwrap();
            let weights =
                scores.broadcast_sub(&scores.max_keepdim(D::Minus1).unwrap().detach()).unwrap().exp().unwrap();
            let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1).unwrap()).unwrap();
            let attended = weights.matmul(&v).unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
            let attended = attended.reshape((n, c.num_attention_heads * c.head_dim)).unwrap();
            x = (x + self.linear(layer, Linear::OProj, &attended)).unwrap();
            let h = self.norm(&x, &format!("model.layers.{layer}.post_attention_layernorm.weight"));
            let gate = self.linear(layer, Linear::GateProj, &h);
            let silu = (&gate / (gate.neg().unwrap().exp().unwrap() + 1.0).unwrap()).unwrap();
            let activated = (silu * self.linear(layer, Linear::UpProj, &h)).unwrap();
            x = (x + self.linear(layer, Linear::DownProj, &activated)).unwrap();
        }
        let x = self.norm(&x, "model.norm.weight").narrow(0, 0, n - 1).unwrap();
        let head = if c.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let logits = (x.matmul(&self.get(head).t().unwrap()).unwrap() / temperature).unwrap();
        let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1).unwrap().detach()).unwrap();
        let lse = shifted.exp().unwrap().sum_keepdim(D::Minus1).unwrap().log().unwrap();
        let all = shifted.broadcast_sub(&lse).unwrap();
        all.gather(&Tensor::new(&ids[1..], &Device::Cpu).unwrap().unsqueeze(1).unwrap(), 1).unwrap().squeeze(1).unwrap()
    }

    /// Gradients of `loss` by the name of the tensor.
    pub fn gradients(&self, loss: &Tensor) -> BTreeMap<String, Vec<f64>> {
        let grads = loss.backward().unwrap();
        let grad = |var: &Var| {
            let zero = || vec![0.0; var.elem_count()];
            grads
                .get(var)
                .map_or_else(zero, |g| g.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap())
        };
        self.vars.iter().map(|(n, v)| (n.clone(), grad(v))).collect()
    }
}
