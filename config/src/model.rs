//! `model`: which weights are the frozen base, and how they are held.

use std::{num::NonZeroUsize, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{HubName, Problems};

/// Name of the policy inside the executable that adds numbers.
pub const EMBEDDED: &str = "embedded";
/// The chat template that the model comes with.
pub const AUTO: &str = "auto";
/// Name of the policy inside the executable that can search.
pub const EMBEDDED_SEARCH: &str = "embedded:search";
/// The compiled-in policy that adds columns and forgets carries.
pub const EMBEDDED_CARRIES: &str = "embedded:carries";

/// Precision in which the matrices of the base are held in memory. Sums are always formed in f32, and log-probs of sampler and
/// learner are equal bit for bit with any of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// Every number as it is in the file, in the memory that it takes there: of bf16 files two bytes, of GGUF blocks their codes.
    #[default]
    #[serde(alias = "f32", alias = "fp32", alias = "auto")]
    Float32,
    /// Rounded to bf16, half the memory of f32; codes stay.
    #[serde(alias = "bf16")]
    Bfloat16,
}

/// How the matrices of a base are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BaseForm {
    /// [`ModelSection::dtype`]
    pub dtype: Dtype,
    /// [`ModelSection::load_in_4bit`]
    pub load_in_4bit: bool,
    /// [`ModelSection::use_bnb_nested_quant`]
    pub use_bnb_nested_quant: bool,
}

/// The section `model`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSection {
    /// A Hugging Face folder, a GGUF file, a name on the hub (`owner/name`, or `owner/name:FILE.gguf`), `embedded`, `embedded:search`, `embedded:carries`, or `random:SHAPE` for
    /// random weights, which learn nothing and take the memory and time of a model (`random:mistral-7b`).
    pub model_name_or_path: String,
    /// Branch, tag or commit of a name on the hub; none: its branch `main`. A run keeps the commit that it found.
    pub model_revision: Option<String>,
    /// How conversations are written: `auto` (as the model comes), `chatml`, `alpaca`, `llama2`, `llama3`, `mistral`, `gemma`, or the
    /// path of a Jinja template.
    pub chat_template: String,
    /// A PEFT folder or a name on the hub to start from.
    pub adapter: Option<PathBuf>,
    /// Precision of the base.
    pub dtype: Dtype,
    /// Holds the linear maps of all layers in NF4 (QLoRA): about an eighth of their memory in f32.
    pub load_in_4bit: bool,
    /// With `load_in_4bit`, codes the scales of its blocks too (double quantisation): 4.13 bits a weight instead of 4.5.
    pub use_bnb_nested_quant: bool,
    /// Recomputes activations in the backward pass: less memory, about a quarter more time.
    pub gradient_checkpointing: bool,
    /// With `gradient_checkpointing`, how many layers are recomputed together. In memory are the input of one layer in so many and the
    /// activations of so many layers; the last so many are not recomputed. So 1 takes the least memory, up to 30 layers, and more
    /// of them less time.
    pub gradient_checkpointing_every: u32,
    /// Lets the learner take the activations of a step from the sampler in the same process instead of computing them again: the
    /// same numbers, without the forward half of learning. They are held while the step is sampled, at most
    /// `optim.max_tokens_per_micro_batch` tokens of them, for a larger step none; with `gradient_checkpointing` only its inputs of layers.
    /// Without effect on workers elsewhere, with `rollout.max_staleness` or `lora.lora_dropout`.
    pub reuse_activations: bool,
    /// Most tokens of one sequence, prompt and completion together; none: the model's own limit.
    pub max_seq_length: Option<u32>,
}

impl Default for ModelSection {
    fn default() -> Self {
        Self {
            model_name_or_path: EMBEDDED.into(),
            model_revision: None,
            chat_template: AUTO.into(),
            adapter: None,
            dtype: Dtype::Float32,
            load_in_4bit: false,
            use_bnb_nested_quant: false,
            gradient_checkpointing: false,
            gradient_checkpointing_every: 1,
            reuse_activations: true,
            max_seq_length: None,
        }
    }
}

impl ModelSection {
    /// True if the base is the policy that is compiled into the binary.
    pub fn is_embedded(&self) -> bool {
        [EMBEDDED, EMBEDDED_SEARCH, EMBEDDED_CARRIES].contains(&self.model_name_or_path.as_str())
    }

    /// How the base is held.
    pub fn base_form(&self) -> BaseForm {
        let Self { dtype, load_in_4bit, use_bnb_nested_quant, .. } = *self;
        BaseForm { dtype, load_in_4bit, use_bnb_nested_quant }
    }

    /// Layers that are recomputed together; none: nothing is.
    pub fn recompute(&self) -> Option<NonZeroUsize> {
        NonZeroUsize::new(self.gradient_checkpointing_every as usize).filter(|_| self.gradient_checkpointing)
    }

    /// The base in one word: its name, with the revision where one is said.
    pub fn reference(&self) -> String {
        let at = |revision: &String| HubName::parse(&self.model_name_or_path)?.at(revision);
        match self.model_revision.as_ref().and_then(at) {
            Some(name) => name.to_string(),
            None => self.model_name_or_path.clone(),
        }
    }

    /// Notes what is out of range.
    pub fn check(&self, p: &mut Problems) {
        p.expect(!self.model_name_or_path.trim().is_empty(), "model_name_or_path", "a path or `embedded`", "nothing");
        if let Some(revision) = &self.model_revision {
            let name = HubName::parse(&self.model_name_or_path);
            let free = name.as_ref().is_some_and(|name| !name.says_revision());
            let fits = name.is_none_or(|name| name.at(revision).is_some());
            p.expect(fits, "model_revision", "a branch, a tag or a commit", format!("{revision:?}"));
            let got = format!("{:?}", self.model_name_or_path);
            p.expect(free, "model_revision", "a name on the hub without a revision in model_name_or_path", got);
        }
        p.expect(!self.chat_template.trim().is_empty(), "chat_template", "`auto`, a name or a path", "nothing");
        let nested = self.load_in_4bit || !self.use_bnb_nested_quant;
        p.expect(nested, "use_bnb_nested_quant", "false without model.load_in_4bit", self.use_bnb_nested_quant);
        let every = self.gradient_checkpointing_every;
        p.range("gradient_checkpointing_every", 1.0, 1024.0, every.into());
        let set = self.gradient_checkpointing || every <= 1;
        p.expect(set, "gradient_checkpointing_every", "1 without model.gradient_checkpointing", every);
        if let Some(n) = self.max_seq_length {
            p.expect(n >= 2, "max_seq_length", "at least 2 tokens", n);
        }
    }
}
