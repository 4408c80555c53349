//! An export as its users read it: from its files alone, but for the base that an adapter belongs to.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use folgore_model::{
    export::read_adapter_gguf,
    files::{self, ModelFiles, peft::AdapterFile},
};

use super::{Kind, Report, Source, ollama};

/// What the files of an export hold.
pub struct Reopened {
    /// The model: whole, or the base of `adapter`.
    pub model: ModelFiles,
    /// The adapter, where it is apart.
    pub adapter: Option<AdapterFile>,
    /// True if the model is of the export's own files.
    pub own_model: bool,
    /// The text of the Modelfile, if there is one.
    pub modelfile: Option<String>,
}

/// Reads the export that `report` describes from `folder`. `source` gives the base where the export has none.
pub fn reopen(report: &Report, folder: &Path, source: &Source) -> Result<Reopened> {
    let gguf = || -> Result<PathBuf> {
        let mut names = report.files.iter().map(|file| &file.name);
        let name = names.find(|name| name.ends_with(".gguf")).context("the export names no GGUF file")?;
        Ok(folder.join(name))
    };
    match report.kind {
        Kind::Peft => {
            let model = source.files()?;
            let adapter = AdapterFile::read(folder)?;
            adapter.validate(&folder.display().to_string(), &model.config)?;
            Ok(Reopened { model, adapter: Some(adapter), own_model: false, modelfile: None })
        }
        Kind::Merged { .. } => {
            Ok(Reopened { model: files::open(folder)?, adapter: None, own_model: true, modelfile: None })
        }
        Kind::Gguf { .. } => {
            Ok(Reopened { model: files::open(&gguf()?)?, adapter: None, own_model: true, modelfile: None })
        }
        Kind::GgufAdapter { .. } => {
            let model = source.files()?;
            let adapter = read_adapter_gguf(&gguf()?, &model.config)?;
            adapter.validate(&gguf()?.display().to_string(), &model.config)?;
            Ok(Reopened { model, adapter: Some(adapter), own_model: false, modelfile: None })
        }
        Kind::Ollama { .. } => of_modelfile(folder, source),
    }
}

fn of_modelfile(folder: &Path, source: &Source) -> Result<Reopened> {
    let path = folder.join(ollama::FILE);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let named = |instruction: &str| ollama::argument(&text, instruction).map(|name| folder.join(name));
    let Some(from) = named("FROM") else { bail!("{}: FROM is missing", path.display()) };
    let model = files::open(&from)?;
    let adapter = match named("ADAPTER") {
        None => None,
        Some(path) => {
            // the file says which architecture it is for, and that of the base was written by the same hand
            let file = read_adapter_gguf(&path, &source.files()?.config)?;
            file.validate(&path.display().to_string(), &model.config)?;
            Some(file)
        }
    };
    Ok(Reopened { model, adapter, own_model: true, modelfile: Some(text) })
}
