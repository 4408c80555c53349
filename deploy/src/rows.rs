//! Where the rows are that the user named: on this machine, or on the Hugging Face hub.

use std::path::Path;

use anyhow::{Result, bail};
use folgore_config::{DataSection, HubName, TracesSection};

/// `section` with paths in the place of names on the hub, whose rows are here now. In `section` itself the names get their commits, so
/// that whoever reads it again finds the same rows.
///
/// # Errors
/// If a name cannot be had.
pub fn here(section: &mut DataSection) -> Result<DataSection> {
    let mut here = section.clone();
    if section.sources.is_empty() && !section.is_procedural() {
        here.dataset = path(&mut section.dataset)?;
    }
    for (named, source) in std::iter::zip(&mut section.sources, &mut here.sources) {
        source.path = path(&mut named.path)?;
    }
    if let Some(held_out) = &mut section.eval_dataset {
        let mut name = held_out.display().to_string();
        here.eval_dataset = Some(path(&mut name)?.into());
        *held_out = name.into();
    }
    Ok(here)
}

/// The same for traces.
///
/// # Errors
/// If a name cannot be had.
pub fn traces_here(section: &mut TracesSection) -> Result<TracesSection> {
    let mut here = section.clone();
    here.path = section.path.as_mut().filter(|_| here.is_on()).map(path).transpose()?;
    Ok(here)
}

/// The path of what `name` names; a path that exists wins over a name on the hub, as everywhere. What is neither stays as it is: whoever
/// reads it has more to say.
fn path(name: &mut String) -> Result<String> {
    let Some(hub) = HubName::parse_dataset(name).filter(|_| !Path::new(name.as_str()).exists()) else {
        return Ok(name.clone());
    };
    if Path::new(hub.repo()).exists() {
        bail!("{name}: {} is on this machine, where it has no revisions and parts: name it without them", hub.repo());
    }
    obtain(&hub, name)
}

#[cfg(feature = "hub")]
fn obtain(hub: &HubName, name: &mut String) -> Result<String> {
    use anyhow::Context as _;
    let obtained = folgore_hub::obtain_rows(&folgore_hub::Settings::from_env()?, hub, &crate::base::say_of_hub);
    let obtained = obtained.with_context(|| format!("{name}: no such file or folder of rows here"))?;
    let pinned = hub.at(&obtained.commit).with_context(|| format!("{name}: {:?} is no commit", obtained.commit))?;
    *name = pinned.to_string();
    Ok(obtained.path.display().to_string())
}

#[cfg(not(feature = "hub"))]
fn obtain(hub: &HubName, name: &mut String) -> Result<String> {
    let repo = hub.repo();
    bail!(
        "{name}: no such file or folder, and this executable was built without the feature `hub`, which takes names on the Hugging Face \
         hub: `hf download --repo-type dataset {repo} --local-dir FOLDER`, and name that folder"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_here_stays_as_it_is() {
        let mut section =
            DataSection { dataset: "src".into(), eval_dataset: Some("no/such.jsonl".into()), ..Default::default() };
        let before = section.clone();
        assert_eq!((here(&mut section).unwrap(), section), (before.clone(), before));
        // the tests of a crate run in its folder
        let mut part = DataSection { dataset: "src/export:data".into(), ..Default::default() };
        let told = here(&mut part).unwrap_err().to_string();
        assert!(told.contains("src/export is on this machine"), "{told}");
    }
}
