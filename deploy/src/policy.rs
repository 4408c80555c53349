//! A policy on this machine: files, decoder and adapter, from what the user named.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result, bail};
use folgore_config::{
    RolloutSection,
    lora::{InitLoraWeights, LoraSection},
    rollout::KvCacheDtype,
};
use folgore_model::{
    ModelConfig, TensorSource,
    backend::{Cpu, KvPrecision},
    decoder::{Decoder, Linear},
    files::{
        ModelFiles,
        peft::{AdapterFile, LoraConfig},
    },
    lora::{Adapter, LoraInit, LoraShape, Rules},
    params::Params,
    tokenizer::Tokenizer,
};
use folgore_protocol::Digest;

use crate::{
    agent::AgentConfig,
    base::{self, Base, Want},
};

/// A model ready to run.
pub struct Policy {
    /// The frozen base.
    pub decoder: Decoder<Cpu>,
    /// Text and ids.
    pub tokenizer: Arc<Tokenizer>,
    /// What the user named; on the hub with its commit.
    pub name: String,
    /// Identity of the base's files.
    pub digest: Digest,
    /// Bytes of the base on the device.
    pub bytes: usize,
}

/// How keys and values are held in a run of `section`.
pub fn kv_precision(section: &RolloutSection) -> KvPrecision {
    match section.kv_cache_dtype {
        KvCacheDtype::Float32 => KvPrecision::F32,
        KvCacheDtype::Bfloat16 => KvPrecision::Bf16,
    }
}

/// Files of `name`, as [`Base::find`] takes it.
pub fn open(name: &str) -> Result<ModelFiles> {
    Base::find(name)?.files()
}

/// The tokenizer of `name` alone.
pub fn open_tokenizer(name: &str) -> Result<Arc<Tokenizer>> {
    Base::wanted(name, Want::Tokenizer)?.tokenizer()
}

impl Policy {
    /// Loads the base `name` in the form in which the adapter `given`, if there is one, was trained on it.
    pub fn under(name: &str, given: Option<&Path>, backend: Arc<Cpu>) -> Result<Self> {
        let agent = given.map(AgentConfig::read).transpose()?.flatten();
        let agent = agent.unwrap_or_default();
        let base = Base::find(name)?.in_form(agent.base_form).speaking(agent.template());
        if let Some(form) = base.form() {
            eprintln!("base: in {form}, as the adapter was trained on it");
        }
        Self::on(&base, backend)
    }

    /// Loads `base`.
    pub fn on(base: &Base, backend: Arc<Cpu>) -> Result<Self> {
        Self::of(base.files()?, base.name(), backend)
    }

    /// Loads the model of `files`, which is called `name`.
    pub fn of(files: ModelFiles, name: &str, backend: Arc<Cpu>) -> Result<Self> {
        let decoder = Decoder::load(backend.clone(), files.config, &*files.tensors as &dyn TensorSource)
            .with_context(|| files.origin.clone())?;
        let bytes = decoder.weights().bytes(&backend);
        Ok(Self { decoder, tokenizer: files.tokenizer, name: name.to_owned(), digest: files.digest, bytes })
    }

    /// Itself, with keys and values as `section` says.
    pub fn with_kv(mut self, section: &RolloutSection) -> Self {
        self.decoder = self.decoder.with_kv(kv_precision(section));
        self
    }

    /// Reads an adapter, from a folder or the hub, and checks it against the base.
    pub fn read_adapter(&self, given: &Path) -> Result<AdapterFile> {
        let (file, place) = (AdapterFile::read(&base::adapter(given)?.path)?, given.display().to_string());
        file.validate(&place, self.config())?;
        if file.config.use_dora {
            bail!(
                "{place}: use_dora: such adapters are exported merged (folgore export --to merged), and then run as a model"
            );
        }
        if !file.config.changed_its_base() {
            return Ok(file);
        }
        Ok(file.on_unchanged_base(&place, &*open(&self.name)?.tensors, self.config().num_hidden_layers)?)
    }

    /// Puts an adapter's values on the device.
    pub fn device_adapter(&self, file: &AdapterFile) -> Result<Adapter<Cpu>> {
        Ok(Adapter::load(&**self.decoder.backend(), self.config(), &file.config.shape(), &file.tensors)?)
    }

    /// A fresh adapter as `section` says, or the given one.
    pub fn params(
        &self,
        section: &LoraSection,
        seed: u64,
        from: Option<&AdapterFile>,
    ) -> Result<(Params<Cpu>, LoraConfig)> {
        let backend = &**self.decoder.backend();
        if let Some(file) = from {
            let params = Params::lora_from(backend, self.config(), file.config.shape(), &file.tensors)?;
            return Ok((params, file.config.clone()));
        }
        if !section.use_peft {
            bail!(
                "lora.use_peft: expected true: a policy trained in all its weights cannot be published to samplers yet"
            );
        }
        let params = Params::lora(backend, self.config(), shape(section)?, init(section), seed);
        Ok((params, fresh_lora(section)?))
    }

    /// The shape of the base.
    pub fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }
}

/// The configuration of a fresh adapter as the section says.
pub fn fresh_lora(section: &LoraSection) -> Result<LoraConfig> {
    Ok(LoraConfig::from_shape(&shape(section)?, init(section)))
}

fn init(section: &LoraSection) -> LoraInit {
    match section.init_lora_weights {
        InitLoraWeights::Kaiming => LoraInit::Kaiming,
        InitLoraWeights::Gaussian => LoraInit::Gaussian,
    }
}

/// The adapter's shape as the section says.
pub fn shape(section: &LoraSection) -> Result<LoraShape> {
    let names = section
        .lora_target_modules
        .resolve()
        .map_err(|name| anyhow::anyhow!("lora.lora_target_modules: {name:?} is no linear"))?;
    Ok(LoraShape {
        r: section.lora_r as usize,
        alpha: section.lora_alpha as f32,
        use_rslora: section.use_rslora,
        dropout: section.lora_dropout as f32,
        targets: Linear::ALL.into_iter().filter(|l| names.contains(&l.name())).collect(),
        rules: Rules::default(),
    })
}
