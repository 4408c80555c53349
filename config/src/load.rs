//! From files and overrides to one checked [`Config`]: defaults, then files from left to right, then `key=value`.
//!
//! Everything that was written becomes a list of settings (full name, value, place). They are laid over the defaults in
//! order: sections merge, lists and free mappings are replaced. The tree is then read as a whole; only if that fails are
//! the settings laid down one by one, and the one that makes the tree unreadable is the one to blame.

use std::{fs::File, io::Read as _};

use serde_json::{Map, Value};

use crate::{
    Config, ConfigError, Place, Problem, Purpose, Refused,
    algo::{self, ALGO_PRESETS},
    alias, explain, preset, preset_names,
    schema::{Found, Kind, NameFault, Schema},
    yaml,
};

/// Largest configuration read, in bytes.
pub const MAX_FILE_BYTES: u64 = 256 << 10;

/// A checked configuration, and what its user should be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Other programs' names that were taken, with the name used here: one sentence each.
    pub notes: Vec<String>,
    /// Settings that work and are seldom meant: one sentence each.
    pub warnings: Vec<String>,
}

/// Lays `sources` (paths or names of presets) and `overrides` (`key=value`) over the defaults, and checks the result.
///
/// # Errors
/// Whatever is wrong, with its place; a value out of range only after everything could be read.
pub fn load(sources: &[impl AsRef<str>], overrides: &[impl AsRef<str>]) -> Result<Loaded, ConfigError> {
    load_for(Purpose::Train, sources, overrides)
}

/// As [`load`], for `purpose`.
///
/// # Errors
/// As [`load`].
pub fn load_for(
    purpose: Purpose,
    sources: &[impl AsRef<str>],
    overrides: &[impl AsRef<str>],
) -> Result<Loaded, ConfigError> {
    let mut loader = Loader::new();
    let files: Vec<_> =
        sources.iter().map(|s| Ok((s.as_ref(), read(s.as_ref())?))).collect::<Result<_, ConfigError>>()?;
    loader.layers(&files, overrides)?;
    loader.finish(purpose)
}

/// As [`load`], from a text that is already in memory; `name` stands in messages.
pub fn load_text(name: &str, text: &str, overrides: &[impl AsRef<str>]) -> Result<Loaded, ConfigError> {
    let mut loader = Loader::new();
    loader.layers(&[(name, text.to_owned())], overrides)?;
    loader.finish(Purpose::Train)
}

fn read(name: &str) -> Result<String, ConfigError> {
    if let Some(text) = preset(name) {
        return Ok(text.to_owned());
    }
    let unreadable = |source| ConfigError::Read { path: name.to_owned(), presets: preset_names(), source };
    let file = File::open(name).map_err(unreadable)?;
    let bytes = file.metadata().map_err(unreadable)?.len();
    let mut body = Vec::new();
    // A pipe has no length, hence the limit on what is read as well.
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut body).map_err(unreadable)?;
    let bytes = bytes.max(body.len() as u64);
    if bytes > MAX_FILE_BYTES {
        return Err(ConfigError::TooLarge { path: name.to_owned(), bytes, limit: MAX_FILE_BYTES });
    }
    String::from_utf8(body).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|b| **b == b'\n').count();
        let column = 1 + valid.iter().rev().take_while(|b| **b != b'\n').count();
        let place = Place { source: name.to_owned(), at: Some((line, column)) };
        ConfigError::Syntax { place, reason: "expected UTF-8 text".into() }
    })
}

struct Setting {
    path: Vec<String>,
    value: Value,
    place: Place,
    /// A method's name stands for it; what its own layer writes goes over it.
    implied: bool,
}

impl Setting {
    fn key(&self) -> String {
        self.path.join(".")
    }
}

/// One source: its name, and its text where places have lines.
#[derive(Clone, Copy)]
struct Origin<'a> {
    name: &'a str,
    text: Option<&'a str>,
}

impl Origin<'_> {
    fn place(self, written: &[String]) -> Place {
        Place { source: self.name.to_owned(), at: self.text.and_then(|text| yaml::position(text, written)) }
    }
}

struct Loader {
    schema: Schema,
    settings: Vec<Setting>,
    /// Where the settings of the layer begin that is being read: a file, or all overrides.
    layer: usize,
    notes: Vec<String>,
}

impl Loader {
    fn new() -> Self {
        Self { schema: Schema::new(), settings: Vec::new(), layer: 0, notes: Vec::new() }
    }

    /// Takes files from left to right, and all overrides as one layer.
    fn layers<S: AsRef<str>>(&mut self, files: &[(&str, String)], overrides: &[S]) -> Result<(), ConfigError> {
        for (name, text) in files {
            self.layer = self.settings.len();
            self.file(name, text)?;
        }
        self.layer = self.settings.len();
        overrides.iter().try_for_each(|text| self.override_with(text.as_ref()))
    }

    fn file(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        let syntax = |at, reason| ConfigError::Syntax { place: Place { source: name.to_owned(), at }, reason };
        let value = yaml::parse(text).map_err(|fault| syntax(fault.at, fault.reason))?;
        let first = self.settings.len();
        match value {
            Value::Null => {}
            Value::Object(map) => self.mapping(Origin { name, text: Some(text) }, &[], &[], map)?,
            other => {
                let reason = format!("expected sections (`rollout:` and so on), got {}", explain::shown(&other));
                return Err(syntax(None, reason));
            }
        }
        self.refuse_twice(first)
    }

    fn override_with(&mut self, text: &str) -> Result<(), ConfigError> {
        let malformed = || ConfigError::Override { text: text.to_owned() };
        let (key, value) = text.split_once('=').ok_or_else(malformed)?;
        let key = key.trim().trim_start_matches("--").replace('-', "_");
        if key.is_empty() || key.split('.').any(str::is_empty) {
            return Err(malformed());
        }
        let origin = Origin { name: text, text: None };
        let value = yaml::parse(value).map_err(|fault| ConfigError::Syntax {
            place: origin.place(&[]),
            reason: format!("the value is not YAML: {}", fault.reason),
        })?;
        self.named(origin, std::slice::from_ref(&key), &key, value)
    }

    /// Takes the entries of a mapping that stands at `path` of the tree, and at `written` of its text.
    fn mapping(
        &mut self,
        origin: Origin<'_>,
        path: &[String],
        written: &[String],
        map: Map<String, Value>,
    ) -> Result<(), ConfigError> {
        for (key, value) in map {
            let here = [path, std::slice::from_ref(&key)].concat();
            let written = [written, std::slice::from_ref(&key)].concat();
            match (self.schema.kind(&here), value) {
                (Some(_), value) => self.at(origin, here, &written, value)?,
                (None, Value::Object(inner)) if alias::leads_on(&here) => {
                    self.mapping(origin, &here, &written, inner)?;
                }
                (None, value) => self.named(origin, &written, &here.join("."), value)?,
            }
        }
        Ok(())
    }

    /// Takes `value` for the key that `name` stands for.
    fn named(&mut self, origin: Origin<'_>, written: &[String], name: &str, value: Value) -> Result<(), ConfigError> {
        let Found { path, alias } = self.schema.resolve(name).map_err(|fault| {
            let (place, key) = (origin.place(written), name.to_owned());
            match fault {
                NameFault::Unknown { advice } => ConfigError::UnknownKey { place, key, advice },
                NameFault::Ambiguous { candidates } => ConfigError::Ambiguous { place, key, candidates },
            }
        })?;
        if alias {
            let place = origin.place(written);
            self.notes.push(format!("{place}: `{name}` is called `{}` here", path.join(".")));
        }
        self.at(origin, path, written, value)
    }

    /// Takes `value` for the section or leaf at `path`.
    fn at(
        &mut self,
        origin: Origin<'_>,
        path: Vec<String>,
        written: &[String],
        value: Value,
    ) -> Result<(), ConfigError> {
        match (self.schema.kind(&path), value) {
            (Some(Kind::Section), Value::Object(map)) => self.mapping(origin, &path, written, map),
            // A section whose keys are all commented out.
            (Some(Kind::Section), Value::Null) => Ok(()),
            (Some(Kind::Section), Value::String(name)) if path == ["algo"] => self.method(&name, origin.place(written)),
            (Some(Kind::Section), other) => Err(ConfigError::Wrong {
                place: origin.place(written),
                key: path.join("."),
                expected: "keys and their values".into(),
                got: explain::shown(&other),
            }),
            (_, value) => {
                let place = origin.place(written);
                self.settings.push(Setting { path, value, place, implied: false });
                Ok(())
            }
        }
    }

    /// A method's name in the place of the section `algo`: the whole section, and what else makes the method, under all that its layer says.
    fn method(&mut self, name: &str, place: Place) -> Result<(), ConfigError> {
        let Some(implied) = algo::method(name) else {
            let expected = format!("keys and their values, or one of {}", ALGO_PRESETS.join(", "));
            return Err(ConfigError::Wrong { place, key: "algo".into(), expected, got: name.to_owned() });
        };
        let settings = implied.into_iter().map(|(key, value)| {
            let path = key.split('.').map(str::to_owned).collect();
            Setting { path, value, place: place.clone(), implied: true }
        });
        self.settings.splice(self.layer..self.layer, settings);
        Ok(())
    }

    /// One file may not set a key under two names; that no key occurs twice under one name was seen by the parser.
    fn refuse_twice(&self, first: usize) -> Result<(), ConfigError> {
        let own: Vec<_> = self.settings[first..].iter().filter(|s| !s.implied).collect();
        for (i, setting) in own.iter().enumerate() {
            if let Some(prior) = own[..i].iter().find(|prior| prior.path == setting.path) {
                let (place, first) = (setting.place.clone(), prior.place.clone());
                return Err(ConfigError::SetTwice { place, key: setting.key(), first });
            }
        }
        Ok(())
    }

    fn finish(self, purpose: Purpose) -> Result<Loaded, ConfigError> {
        let mut tree = self.schema.defaults().clone();
        for setting in &self.settings {
            lay(&mut tree, setting)?;
        }
        let config: Config = match serde_json::from_value(tree) {
            Ok(config) => config,
            Err(error) => return Err(self.blame(&error.to_string())),
        };
        let problems = config.problems_of(purpose);
        if problems.errors.is_empty() {
            return Ok(Loaded { config, notes: self.notes, warnings: problems.warnings });
        }
        Err(ConfigError::Invalid(problems.errors.into_iter().map(|problem| self.refused(problem)).collect()))
    }

    fn refused(&self, problem: Problem) -> Refused {
        let set = self.settings.iter().rev().find(|s| {
            let key = s.key();
            problem.key == key || problem.key.strip_prefix(&key).is_some_and(|rest| rest.starts_with(['.', '[']))
        });
        Refused { place: set.map(|s| s.place.clone()), problem }
    }

    /// The setting that makes the tree unreadable.
    fn blame(&self, whole: &str) -> ConfigError {
        let mut tree = self.schema.defaults().clone();
        for setting in &self.settings {
            if let Err(error) = lay(&mut tree, setting) {
                return error;
            }
            if let Err(error) = serde_json::from_value::<Config>(tree.clone()) {
                let default = self.schema.defaults().pointer(&format!("/{}", setting.path.join("/")));
                let (expected, got) = explain::type_error(&error.to_string(), &setting.value, default);
                return ConfigError::Wrong { place: setting.place.clone(), key: setting.key(), expected, got };
            }
        }
        let place = Place { source: "configuration".into(), at: None };
        ConfigError::Syntax { place, reason: whole.to_owned() }
    }
}

/// Puts a value into the tree, making mappings on the way where the user fills one freely.
fn lay(tree: &mut Value, setting: &Setting) -> Result<(), ConfigError> {
    let wrong = |depth: usize, expected: String, got: &Value| ConfigError::Wrong {
        place: setting.place.clone(),
        key: setting.path[..depth].join("."),
        expected,
        got: explain::shown(got),
    };
    let mut node = tree;
    for (depth, name) in setting.path.iter().enumerate() {
        node = match node {
            Value::Object(map) => map.entry(name.clone()).or_insert_with(|| Value::Object(Map::new())),
            Value::Array(items) => {
                let len = items.len();
                match name.parse::<usize>().ok().and_then(|i| items.get_mut(i)) {
                    Some(item) => item,
                    None => {
                        let expected = format!("a list with a place {name} (places count from 0)");
                        return Err(wrong(depth, expected, &Value::String(format!("{len} of them"))));
                    }
                }
            }
            other => return Err(wrong(depth, format!("a mapping with a key `{name}`"), &other.clone())),
        };
    }
    *node = setting.value.clone();
    Ok(())
}
