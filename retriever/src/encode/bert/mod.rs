//! BERT: tokens of whole texts to one vector for each token.
//!
//! Products are those of `folgore_model`, on its threads. Texts that go through the model together lie one behind the other, without
//! padding: a product goes row by row, and attention knows where a text begins and ends.

mod attention;
mod config;
mod forward;
mod kernels;
mod tokens;

use std::path::Path;

use folgore_model::{
    TensorSource,
    backend::{Backend as _, Cpu, CpuBuf, MatrixData},
    files::safetensors,
};
use folgore_protocol::Digest;
use sha2::{Digest as _, Sha256};

use super::EncodeError;
use config::Config;
pub(crate) use config::json;
pub(crate) use tokens::{Tokens, Vocabulary};

type Matrix = <Cpu as folgore_model::backend::Backend>::Matrix;

/// A matrix product with a bias.
pub(crate) struct Linear {
    weight: Matrix,
    bias: CpuBuf,
}

struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

struct Layer {
    /// Queries, keys and values, one behind the other.
    qkv: Linear,
    attended: Linear,
    attention_norm: Norm,
    wide: Linear,
    narrow: Linear,
    output_norm: Norm,
}

/// The weights of a BERT, and what more its folder holds.
pub(crate) struct Bert {
    cpu: Cpu,
    config: Config,
    words: Vec<f32>,
    places: Vec<f32>,
    kinds: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
    source: Source,
    digest: Digest,
}

/// Tensors of a checkpoint, with or without `bert.` in front.
struct Source {
    tensors: Box<dyn TensorSource + Send + Sync>,
    place: String,
}

impl Source {
    fn fault(&self, what: impl Into<String>) -> EncodeError {
        EncodeError { encoder: self.place.clone(), what: what.into() }
    }

    /// Reads a tensor and checks its shape. Old checkpoints call the weights of norms gamma and beta.
    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, EncodeError> {
        let old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        let names = [name.to_owned(), format!("bert.{name}"), old.clone(), format!("bert.{old}")];
        let found = names.iter().find(|name| self.tensors.shape(name).is_some());
        let tensor = self.tensors.tensor(found.unwrap_or(&names[0])).map_err(|e| self.fault(e.to_string()))?;
        if tensor.shape != shape {
            return Err(self.fault(format!("tensor {name}: shape {:?}, expected {shape:?}", tensor.shape)));
        }
        match tensor.first_not_finite() {
            Some(number) => Err(self.fault(format!("tensor {name} holds {number}"))),
            None => Ok(tensor.into_f32()),
        }
    }

    fn norm(&self, name: &str, width: usize) -> Result<Norm, EncodeError> {
        let read = |part: &str| self.read(&format!("{name}.{part}"), &[width]);
        Ok(Norm { weight: read("weight")?, bias: read("bias")? })
    }

    fn linear(&self, cpu: &Cpu, name: &str, out: usize, inner: usize, bias: bool) -> Result<Linear, EncodeError> {
        let weight = self.read(&format!("{name}.weight"), &[out, inner])?;
        let bias = if bias { self.read(&format!("{name}.bias"), &[out])? } else { vec![0.0; out] };
        Ok(Linear { weight: cpu.matrix(MatrixData::F32(&weight), out, inner), bias: cpu.upload(&bias) })
    }

    /// Square products of the same rows as one, their results one behind the other.
    fn stacked(&self, cpu: &Cpu, names: &[String], width: usize) -> Result<Linear, EncodeError> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for name in names {
            weight.extend(self.read(&format!("{name}.weight"), &[width, width])?);
            bias.extend(self.read(&format!("{name}.bias"), &[width])?);
        }
        Ok(Linear { weight: cpu.matrix(MatrixData::F32(&weight), names.len() * width, width), bias: cpu.upload(&bias) })
    }
}

impl Layer {
    fn read(source: &Source, cpu: &Cpu, config: &Config, index: usize) -> Result<Self, EncodeError> {
        let (width, wide) = (config.hidden_size, config.intermediate_size);
        let linear =
            |name: &str, out, inner| source.linear(cpu, &format!("encoder.layer.{index}.{name}"), out, inner, true);
        let norm = |name: &str| source.norm(&format!("encoder.layer.{index}.{name}"), width);
        let parts = ["query", "key", "value"].map(|part| format!("encoder.layer.{index}.attention.self.{part}"));
        Ok(Self {
            qkv: source.stacked(cpu, &parts, width)?,
            attended: linear("attention.output.dense", width, width)?,
            attention_norm: norm("attention.output.LayerNorm")?,
            wide: linear("intermediate.dense", wide, width)?,
            narrow: linear("output.dense", width, wide)?,
            output_norm: norm("output.LayerNorm")?,
        })
    }
}

impl Bert {
    /// Reads `config.json` and `model.safetensors` of a folder.
    pub(crate) fn open(folder: &Path) -> Result<Self, EncodeError> {
        let place = folder.display().to_string();
        let fault = |what: String| EncodeError { encoder: place.clone(), what };
        let config = Config::read(folder).map_err(fault)?;
        let file = folder.join("model.safetensors");
        let tensors = safetensors::open(&file).map_err(|e| fault(e.to_string()))?;
        let source = Source { tensors, place: place.clone() };
        let cpu = Cpu::new();
        let width = config.hidden_size;
        let table = |name: &str, rows| source.read(&format!("embeddings.{name}.weight"), &[rows, width]);
        Ok(Self {
            words: table("word_embeddings", config.vocab_size)?,
            places: table("position_embeddings", config.max_position_embeddings)?,
            kinds: table("token_type_embeddings", config.type_vocab_size)?,
            norm: source.norm("embeddings.LayerNorm", width)?,
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::read(&source, &cpu, &config, index))
                .collect::<Result<_, _>>()?,
            digest: digest(folder).map_err(|e| fault(e.to_string()))?,
            cpu,
            config,
            source,
        })
    }

    /// Numbers of a token's vector.
    pub(crate) fn width(&self) -> usize {
        self.config.hidden_size
    }

    /// Tokens that a text may have.
    pub(crate) fn max_tokens(&self) -> usize {
        self.config.max_position_embeddings
    }

    /// Of the files that say what it computes.
    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }

    /// The tokenizer beside it; texts are cut to `max_tokens`.
    pub(crate) fn vocabulary(&self, folder: &Path, max_tokens: usize) -> Result<Vocabulary, EncodeError> {
        Vocabulary::open(folder, max_tokens, self.config.vocab_size, self.config.type_vocab_size)
    }

    /// A product that the checkpoint has beside BERT itself.
    pub(crate) fn head(&self, name: &str, out: usize, inner: usize, bias: bool) -> Result<Linear, EncodeError> {
        self.source.linear(&self.cpu, name, out, inner, bias)
    }

    /// Rows of a tensor of the checkpoint; none if it is not there.
    pub(crate) fn rows_of(&self, name: &str) -> Option<usize> {
        self.source.tensors.shape(name)?.first().copied()
    }

    /// `x` times the matrix, plus the bias.
    pub(crate) fn apply(&self, linear: &Linear, x: &CpuBuf) -> CpuBuf {
        let (out, inner) = self.cpu.shape(&linear.weight);
        let rows = x.len() / inner;
        let mut y = self.cpu.alloc(rows * out);
        self.cpu.fill_rows(&linear.bias, &mut y);
        self.cpu.linear(x, &linear.weight, &mut y, 0..rows, true);
        y
    }

    /// Numbers for [`Bert::apply`].
    pub(crate) fn upload(&self, values: &[f32]) -> CpuBuf {
        self.cpu.upload(values)
    }
}

/// Of every file of the folder that has a say in a vector.
fn digest(folder: &Path) -> std::io::Result<Digest> {
    let names = ["config.json", "model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"];
    let more = [
        "sentence_bert_config.json",
        "tokenizer_config.json",
        "config_sentence_transformers.json",
        "artifact.metadata",
    ];
    let mut sum = Sha256::new();
    for name in names.iter().chain(&more) {
        let path = folder.join(name);
        if path.exists() {
            let mut file = std::fs::File::open(&path)?;
            sum.update(name.as_bytes());
            sum.update(file.metadata()?.len().to_le_bytes());
            std::io::copy(&mut file, &mut sum)?;
        }
    }
    Ok(Digest(sum.finalize().into()))
}
