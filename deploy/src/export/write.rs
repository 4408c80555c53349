//! Makes the files of an export, one tensor at a time.

use std::path::Path;

use anyhow::Result;
use folgore_model::{
    export::{self, Merged},
    files::{ModelFiles, atomic::write_atomic},
};

use super::{Kind, Report, Source, ollama, seal::Sealed};
use crate::agent;

/// Writes `source` as `kind` into `folder`; gives what was written, not yet verified.
pub fn write(source: &Source, kind: Kind, folder: &Path, max_shard: u64) -> Result<Report> {
    let base = source.files()?;
    let mut notes = Vec::new();
    if let (Kind::Peft | Kind::GgufAdapter { .. }, Some(form)) = (kind, source.base.form()) {
        notes.push(format!("trained on the base in {form}: beside the base in other numbers it is another policy"));
    }
    if source.agent.procedures.is_some() {
        let told = "procedures stood in its prompts, which other software has to put there as well";
        notes.push(format!("{told}: {} holds them", agent::FILE));
    }
    let mut files = match kind {
        Kind::Peft => peft(source, &base, folder)?,
        Kind::Merged { dtype } => {
            let merged = Merged::new(&*base.tensors, &base.config, Some(&source.adapter))?;
            let (config, tokenizer) = (&base.config, &base.tokenizer);
            export::write_folder(folder, &merged, config, tokenizer, source.folder(), dtype.precision(), max_shard)?
        }
        Kind::Gguf { quant } => {
            let name = format!("{}-{}.gguf", source.name, quant.quant().name());
            vec![gguf(source, &base, folder, name, quant, true)?]
        }
        Kind::GgufAdapter { dtype } => vec![gguf_adapter(source, &base, folder, dtype)?],
        Kind::Ollama { quant, apart } => {
            let name = format!("{}-{}.gguf", if apart { "base" } else { source.name.as_str() }, quant.quant().name());
            let mut files = vec![gguf(source, &base, folder, name, quant, !apart)?];
            if apart {
                files.push(gguf_adapter(source, &base, folder, super::report::Coding::F32)?);
            }
            let file = ollama::modelfile(&files, &base, &source.agent)?;
            write_atomic(&folder.join(ollama::FILE), file.text.as_bytes())?;
            notes.extend(file.note);
            files.push(ollama::FILE.into());
            files
        }
    };
    let mut agent = source.agent.clone();
    agent.chat_template_sha256 = base.tokenizer.chat_template().map(agent::template_digest);
    write_atomic(&folder.join(agent::FILE), agent.to_yaml()?.as_bytes())?;
    files.push(agent::FILE.into());
    Ok(Report {
        schema: Report::SCHEMA,
        version: env!("CARGO_PKG_VERSION").into(),
        kind,
        base: source.base.name().to_owned(),
        base_digest: base.digest.hex(),
        adapter: source.path.display().to_string(),
        adapter_digest: source.digest.hex(),
        files: files.iter().map(|name| Sealed::of(folder, name)).collect::<Result<_>>()?,
        notes,
        verified: None,
    })
}

fn peft(source: &Source, base: &ModelFiles, folder: &Path) -> Result<Vec<String>> {
    let mut file = source.adapter.clone();
    file.base_model = Some(source.base.name().to_owned());
    file.write(folder)?;
    let mut files = vec!["adapter_config.json".to_owned(), "adapter_model.safetensors".to_owned()];
    files.extend(export::write_tokenizer(folder, &base.tokenizer, source.folder())?);
    Ok(files)
}

fn gguf(
    source: &Source,
    base: &ModelFiles,
    folder: &Path,
    name: String,
    coding: super::report::Coding,
    with_adapter: bool,
) -> Result<String> {
    let adapter = with_adapter.then_some(&source.adapter);
    let merged = Merged::new(&*base.tensors, &base.config, adapter)?;
    let (config, tokenizer) = (&base.config, &base.tokenizer);
    export::write_gguf(&folder.join(&name), &merged, config, tokenizer, source.gguf(), &source.name, coding.quant())?;
    Ok(name)
}

fn gguf_adapter(source: &Source, base: &ModelFiles, folder: &Path, coding: super::report::Coding) -> Result<String> {
    let name = "adapter.gguf";
    export::write_adapter_gguf(&folder.join(name), &source.adapter, &base.config, &source.name, coding.block())?;
    Ok(name.into())
}
