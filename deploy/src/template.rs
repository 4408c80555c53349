//! The chat template that a model is spoken to by, where another one was chosen than its own.

use std::{fs, sync::Arc};

use anyhow::{Context as _, Result, bail};
use folgore_config::{ModelSection, model::AUTO};
use folgore_model::{chat::Builtin, files::ModelFiles};

/// Longest template that is read, in bytes.
const LIMIT: u64 = 64 << 10;

/// A template that was chosen.
#[derive(Clone, Debug)]
pub enum Template {
    /// One of ours.
    Builtin(Builtin),
    /// A source.
    Source(String),
}

impl Template {
    /// The one that `section` names; none where the model keeps its own.
    ///
    /// # Errors
    /// If it is neither a name nor a file.
    pub fn of(section: &ModelSection) -> Result<Option<Self>> {
        let name = section.chat_template.as_str();
        if name == AUTO {
            return Ok(None);
        }
        if let Some(builtin) = Builtin::named(name) {
            return Ok(Some(Self::Builtin(builtin)));
        }
        let length = fs::metadata(name).map(|file| file.len());
        let length = length.with_context(|| {
            format!("model.chat_template: {name}: expected {AUTO}, {}, or the path of a template", Builtin::names())
        })?;
        if length > LIMIT {
            bail!("model.chat_template: {name}: {length} bytes: expected at most {LIMIT}");
        }
        let source = fs::read_to_string(name).with_context(|| format!("model.chat_template: {name}"))?;
        Ok(Some(Self::Source(source)))
    }

    /// What [`Template::kept`] gave.
    pub fn again(kept: &str) -> Self {
        Builtin::named(kept).map_or_else(|| Self::Source(kept.to_owned()), Self::Builtin)
    }

    /// Its name, or its source where it has none: what a checkpoint says of it.
    pub fn kept(&self) -> String {
        match self {
            Self::Builtin(builtin) => builtin.name.to_owned(),
            Self::Source(source) => source.clone(),
        }
    }

    /// `files` with this template. A token of its own that ends turns ends generations too.
    ///
    /// # Errors
    /// If it cannot be read, or the tokenizer lacks a token that it writes.
    pub fn put(&self, mut files: ModelFiles) -> Result<ModelFiles> {
        let source = match self {
            Self::Builtin(builtin) => {
                let end =
                    builtin.end(&files.tokenizer).with_context(|| format!("model.chat_template: {}", files.origin))?;
                if !files.config.eos_token_ids.contains(&end) {
                    files.config.eos_token_ids.push(end);
                }
                builtin.source
            }
            Self::Source(source) => source,
        };
        files.tokenizer = Arc::new(files.tokenizer.with_chat_template(source).context("model.chat_template")?);
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Base;

    #[test]
    fn a_template_is_chosen_by_name_or_path_and_found_again() {
        let section = |name: &str| ModelSection { chat_template: name.into(), ..ModelSection::default() };
        assert!(Template::of(&section(AUTO)).unwrap().is_none());
        let told = Template::of(&section("no/such")).unwrap_err().to_string();
        assert!(told.contains("auto, chatml, alpaca"), "{told}");
        // the embedded policy has no template of its own, and no tokens of chats
        let told = format!("{:#}", Base::of(&section("chatml")).unwrap().files().unwrap_err());
        assert!(told.contains("lacks <|im_start|>") && told.contains("alpaca, llama2, mistral fit"), "{told}");
        let files = Base::of(&section("alpaca")).unwrap().files().unwrap();
        assert!(files.tokenizer.chat_template().is_some_and(|source| source.contains("### Response")));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "{{ messages[0].content }}").unwrap();
        let chosen = Template::of(&section(file.path().to_str().unwrap())).unwrap().unwrap();
        let again = Template::again(&chosen.kept());
        assert!(matches!(again, Template::Source(source) if source == "{{ messages[0].content }}"));
        assert!(matches!(Template::again("gemma"), Template::Builtin(builtin) if builtin.name == "gemma"));
    }
}
