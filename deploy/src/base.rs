//! Where the models and adapters are that the user named: compiled in, on this machine, or on the Hugging Face hub.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Result, bail};
use folgore_config::{BaseForm, Dtype, HubName, ModelSection};
use folgore_model::{
    ModelConfig,
    files::{self, Held, ModelFiles, NestedScales, random},
    tokenizer::Tokenizer,
};

use crate::{embedded::Embedded, template::Template};

/// What a name is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The model.
    Model,
    /// Its tokenizer alone.
    Tokenizer,
    /// An adapter.
    Adapter,
    /// An encoder or a reranker of passages.
    Encoder,
}

/// Where a base is.
#[derive(Clone, Debug)]
enum Place {
    /// In this executable.
    Embedded(Embedded),
    /// Nowhere: it is drawn.
    Random(Box<ModelConfig>),
    /// On this machine.
    Here(PathBuf),
}

/// A base that was found.
#[derive(Clone, Debug)]
pub struct Base {
    place: Place,
    name: String,
    hub: Option<HubName>,
    held: Held,
    template: Option<Template>,
}

impl Base {
    /// Finds the model `name`: `embedded`, `random:SHAPE` for random weights, a folder, a GGUF file, or a name on the hub, whose files are
    /// downloaded unless they are there.
    ///
    /// # Errors
    /// If it is none of these, or cannot be had.
    pub fn find(name: &str) -> Result<Self> {
        Self::wanted(name, Want::Model)
    }

    /// Finds what `want` says of the model `name`.
    ///
    /// # Errors
    /// As [`Base::find`].
    pub fn wanted(name: &str, want: Want) -> Result<Self> {
        if let Some(policy) = Embedded::named(name) {
            return Ok(Self {
                place: Place::Embedded(policy),
                name: name.to_owned(),
                hub: None,
                held: Held::default(),
                template: None,
            });
        }
        if let Some(shape) = name.strip_prefix(random::PREFIX) {
            let Some(config) = random::shape(shape) else {
                bail!(
                    "{name}: no such shape; expected {}",
                    random::SHAPES.map(|s| format!("{}{s}", random::PREFIX)).join(", ")
                );
            };
            let place = Place::Random(Box::new(config));
            return Ok(Self { place, name: name.to_owned(), hub: None, held: Held::default(), template: None });
        }
        let Found { path, hub } = find(name, want)?;
        let name = hub.as_ref().map_or(name.to_owned(), HubName::to_string);
        Ok(Self { place: Place::Here(path), name, hub, held: Held::default(), template: None })
    }

    /// Finds the model of a run, held as `section` says.
    ///
    /// # Errors
    /// As [`Base::find`].
    pub fn of(section: &ModelSection) -> Result<Self> {
        let template = Template::of(section)?;
        Ok(Self::find(&section.reference())?.in_form(section.base_form()).speaking(template))
    }

    /// The same model, spoken to by another chat template.
    pub fn speaking(self, template: Option<Template>) -> Self {
        Self { template, ..self }
    }

    /// The same model, held as `form` says.
    pub fn in_form(self, form: BaseForm) -> Self {
        let nf4 = form.load_in_4bit.then_some(NestedScales(form.use_bnb_nested_quant));
        Self { held: Held { bf16: form.dtype == Dtype::Bfloat16, nf4 }, ..self }
    }

    /// How it is held, for people; none if that is as in its files.
    pub fn form(&self) -> Option<&'static str> {
        match self.held {
            Held { nf4: Some(NestedScales(true)), .. } => Some("NF4 with nested scales"),
            Held { nf4: Some(NestedScales(false)), .. } => Some("NF4"),
            Held { bf16: true, nf4: None } => Some("bfloat16"),
            Held { bf16: false, nf4: None } => None,
        }
    }

    /// What it is called in records: as the user named it, and on the hub with its commit, which names the same files for ever.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is called by other software: on the hub without a commit.
    pub fn plain_name(&self) -> &str {
        self.hub.as_ref().map_or(&self.name, HubName::repo)
    }

    /// Its folder or file on this machine; none if it is compiled in or drawn.
    pub fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::Here(path) => Some(path),
            Place::Embedded(_) | Place::Random(_) => None,
        }
    }

    /// Its files.
    ///
    /// # Errors
    /// If they are no model.
    pub fn files(&self) -> Result<ModelFiles> {
        let files = match &self.place {
            Place::Embedded(policy) => policy.files()?,
            Place::Random(config) => random::files(&self.name, (**config).clone())?,
            Place::Here(path) => files::open(path)?,
        };
        let files = files.held(self.held);
        match &self.template {
            None => Ok(files),
            Some(template) => template.put(files),
        }
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// If there is none.
    pub fn tokenizer(&self) -> Result<Arc<Tokenizer>> {
        match &self.place {
            Place::Here(path) if self.template.is_none() => Ok(files::open_tokenizer(path)?),
            Place::Here(_) | Place::Embedded(_) | Place::Random(_) => Ok(self.files()?.tokenizer),
        }
    }

    /// Makes `section` name this base for ever: a branch of today may be another tomorrow.
    pub fn pin(&self, section: &mut ModelSection) {
        if let Some(hub) = &self.hub {
            section.model_name_or_path = hub.without_revision().to_string();
            section.model_revision = Some(hub.revision().to_owned());
        }
    }
}

/// Something that is on this machine now.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its folder or file.
    pub path: PathBuf,
    /// Its name with its commit, if it is from the hub.
    pub hub: Option<HubName>,
}

/// The adapter that `given` names: a folder, or a name on the hub. A path that is neither stays as it is: whoever reads it has more to say.
///
/// # Errors
/// If it is a name on the hub and cannot be had.
pub fn adapter(given: &Path) -> Result<Found> {
    match given.to_str() {
        Some(name) if !given.exists() && HubName::parse(name).is_some_and(|name| name.file().is_none()) => {
            find(name, Want::Adapter)
        }
        _ => Ok(Found { path: given.to_owned(), hub: None }),
    }
}

/// The encoder or reranker that `name` names: a folder, or a name on the hub.
///
/// # Errors
/// If it is neither, or cannot be had.
pub fn encoder(name: &str) -> Result<Found> {
    find(name, Want::Encoder)
}

/// A path that exists wins over a name on the hub, as everywhere.
fn find(name: &str, want: Want) -> Result<Found> {
    let path = Path::new(name);
    if path.exists() {
        return Ok(Found { path: path.to_owned(), hub: None });
    }
    let (what, or) = match want {
        Want::Adapter => ("adapter folder", ""),
        Want::Encoder => ("folder of an encoder or reranker", ""),
        Want::Model | Want::Tokenizer => {
            ("model folder or GGUF file", ", or `embedded` (deploy/models/ has a script that obtains one)")
        }
    };
    let Some(hub) = HubName::parse(name).filter(|hub| want != Want::Encoder || hub.file().is_none()) else {
        bail!("{name}: no such {what}; give a path{or}");
    };
    if Path::new(hub.repo()).exists() {
        bail!("{name}: {} is on this machine, where it has no revisions and parts: name it without them", hub.repo());
    }
    obtain(&hub, want, what)
}

#[cfg(feature = "hub")]
fn obtain(name: &HubName, want: Want, what: &str) -> Result<Found> {
    use anyhow::Context as _;
    use folgore_hub::{Need, Settings};
    let need = match want {
        Want::Model => Need::Model,
        Want::Tokenizer => Need::Tokenizer,
        Want::Adapter => Need::Adapter,
        Want::Encoder => Need::Encoder,
    };
    let settings = Settings::from_env()?;
    // whoever mistyped a folder is told that first
    let obtained = folgore_hub::obtain(&settings, name, need, &say_of_hub);
    let obtained = obtained.with_context(|| format!("{name}: no such {what} here"))?;
    let hub = name.at(&obtained.commit).with_context(|| format!("{name}: {:?} is no commit", obtained.commit))?;
    Ok(Found { path: obtained.path, hub: Some(hub) })
}

/// What downloads have to say.
#[cfg(feature = "hub")]
pub fn say_of_hub(line: &str) {
    match line.starts_with("warning: ") {
        true => eprintln!("{line}"),
        false => eprintln!("note: {line}"),
    }
}

#[cfg(not(feature = "hub"))]
fn obtain(name: &HubName, _want: Want, what: &str) -> Result<Found> {
    bail!(
        "{name}: no such {what} here, and this executable was built without the feature `hub`, which takes names on the Hugging Face \
         hub: download it and give its folder"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(name: &str) -> String {
        format!("{:#}", Base::find(name).unwrap_err())
    }

    #[test]
    fn what_is_here_is_taken_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().to_str().unwrap();
        let found = Base::find(name).unwrap();
        assert_eq!((found.name(), found.plain_name(), found.path()), (name, name, Some(folder.path())));
        assert_eq!(Base::find(crate::embedded::NAME).unwrap().path(), None);
        let mut section = ModelSection { model_name_or_path: name.into(), ..ModelSection::default() };
        found.pin(&mut section);
        assert_eq!((section.model_name_or_path.as_str(), section.model_revision), (name, None));
        assert_eq!(adapter(folder.path()).unwrap().path, folder.path());
        assert_eq!(adapter(Path::new("no/such/adapter")).unwrap().path, Path::new("no/such/adapter"));
        // the tests of a crate run in its folder
        assert!(told("src/export@main").contains("src/export is on this machine, where it has no revisions"));
        let drawn = Base::find("random:smollm2").unwrap();
        assert_eq!((drawn.name(), drawn.path()), ("random:smollm2", None));
        assert_eq!(drawn.files().unwrap().config.num_hidden_layers, 30);
        assert!(drawn.tokenizer().unwrap().vocab_size() > 90);
        assert!(told("random:gpt-5").contains("random:mistral-7b"), "{}", told("random:gpt-5"));
        for nothing in ["nowhere", "/no/where", "./no/where"] {
            assert!(told(nothing).contains("no such model folder or GGUF file"), "{}", told(nothing));
        }
    }

    #[test]
    fn a_base_of_the_hub_is_recorded_with_its_commit() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let hub = HubName::parse(&format!("owner/name@{commit}:x.gguf")).unwrap();
        let base = Base {
            place: Place::Here("somewhere".into()),
            name: hub.to_string(),
            hub: Some(hub),
            held: Held::default(),
            template: None,
        };
        let mut section = ModelSection { model_name_or_path: "owner/name:x.gguf".into(), ..ModelSection::default() };
        base.pin(&mut section);
        assert_eq!(section.model_name_or_path, "owner/name:x.gguf");
        assert_eq!((section.model_revision.as_deref(), section.reference().as_str()), (Some(commit), base.name()));
        assert_eq!(base.plain_name(), "owner/name");
    }
}
