//! What is exported: an adapter, its base, and what its run tells about it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use folgore_config::{Config, Purpose, load_for};
use folgore_model::files::{ModelFiles, peft::AdapterFile};
use folgore_protocol::Digest;

use crate::{agent::AgentConfig, base::Base, run_dir};

/// An adapter with everything that is known of it.
pub struct Source {
    /// For people and for names of files.
    pub name: String,
    /// The base.
    pub base: Base,
    /// Folder of the adapter.
    pub path: PathBuf,
    /// The adapter, on the unchanged base.
    pub adapter: AdapterFile,
    /// Identity of the adapter as it lies in its folder.
    pub digest: Digest,
    /// The run's folder and configuration, if it comes from one.
    pub run: Option<(PathBuf, Box<Config>)>,
    /// How the policy is spoken to.
    pub agent: AgentConfig,
}

impl Source {
    /// Finds `given`: a run, a checkpoint, or the folder of an adapter. `model` is the base, where it is said.
    pub fn find(given: &str, output_dir: &Path, model: Option<&str>) -> Result<Self> {
        let (path, run) = place(given, output_dir)?;
        let file = AdapterFile::read(&path)?;
        let config = run.as_ref().map(|run| read_config(run)).transpose()?;
        let of_run = config.as_ref().map(|config| config.model.reference());
        let base = match model.map(str::to_owned).or(of_run).or_else(|| file.base_model.clone()) {
            Some(base) => base,
            None => bail!("{}: its base model is not named: give --model", path.display()),
        };
        let base = Base::find(&base).with_context(|| format!("the base of {}", path.display()))?;
        let agent = match AgentConfig::read(&path)? {
            Some(agent) => agent,
            None => of_config(base.name(), config.as_ref()),
        };
        let digest = Digest::of(&file.to_bytes());
        let files = base.files().with_context(|| format!("the base of {}", path.display()))?;
        let place = path.display().to_string();
        file.validate(&place, &files.config)?;
        let adapter = file.on_unchanged_base(&place, &*files.tensors, files.config.num_hidden_layers)?;
        // from here on as it was trained on
        let base = base.in_form(agent.base_form).speaking(agent.template());
        let name = name(&path, run.as_deref());
        Ok(Self { name, base, path, adapter, digest, run: run.zip(config.map(Box::new)), agent })
    }

    /// The base's files, opened anew.
    pub fn files(&self) -> Result<ModelFiles> {
        self.base.files()
    }

    /// The base's folder, if it is one.
    pub fn folder(&self) -> Option<&Path> {
        self.base.path().filter(|path| path.is_dir())
    }

    /// The base's GGUF file, if it is one.
    pub fn gguf(&self) -> Option<&Path> {
        self.base.path().filter(|path| path.is_file())
    }
}

/// The folder of the adapter, and that of its run if it lies in one.
fn place(given: &str, output_dir: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    let path = PathBuf::from(given);
    if path.join("adapter_config.json").exists() {
        let above = path.canonicalize().ok().and_then(|path| Some(path.parent()?.parent()?.to_owned()));
        let run = above.filter(|run| run.join(run_dir::CONFIG).exists());
        return Ok((path, run));
    }
    let run = run_dir::find(output_dir, given)
        .with_context(|| format!("{given}: expected a run, a checkpoint, or a folder with adapter_config.json"))?;
    let checkpoints = run.join("checkpoints");
    let step = run_dir::checkpoint_steps(&checkpoints).into_iter().max();
    let step = step.with_context(|| format!("{}: the run has no checkpoint yet", run.display()))?;
    Ok((checkpoints.join(format!("checkpoint-{step}")), Some(run)))
}

fn read_config(run: &Path) -> Result<Config> {
    let no_settings: [&str; 0] = [];
    // the least that any run asks of its configuration
    Ok(load_for(Purpose::Sft, &[run.join(run_dir::CONFIG).display().to_string()], &no_settings)?.config)
}

/// `run-1-step-40`, or the name of the adapter's folder.
fn name(path: &Path, run: Option<&Path>) -> String {
    let last = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let own = last(path).or_else(|| last(&path.canonicalize().ok()?)).unwrap_or_else(|| "policy".into());
    match run.and_then(last) {
        Some(run) => format!("{run}-{}", own.replace("checkpoint-", "step-")),
        None => own,
    }
}

/// What can be said of an adapter whose checkpoint has no `agent_config.yaml`.
fn of_config(base: &str, config: Option<&Config>) -> AgentConfig {
    let Some(config) = config else { return AgentConfig { base_model: base.to_owned(), ..AgentConfig::default() } };
    let mut variables = config.rollout.chat_template_kwargs.clone();
    let tools = variables.remove("tools").and_then(|tools| tools.as_array().cloned()).unwrap_or_default();
    AgentConfig {
        base_model: base.to_owned(),
        base_form: config.model.base_form(),
        system_prompt: config.data.system_prompt.clone(),
        tools,
        sampling: (&config.rollout).into(),
        chat_template: None,
        chat_template_sha256: None,
        chat_template_kwargs: variables,
        procedures: None,
    }
}
