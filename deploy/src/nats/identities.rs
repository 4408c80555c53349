//! The identities of a fleet: one folder each, made on the server's machine and carried to the worker's.
//!
//! ```text
//! identities/NAME/nkey.seed  ca.pem  cert.pem  key.pem  name  role    what `--identity FOLDER` reads
//! identities/NAME/public.nk                                           what the server knows of it
//! ```
//! `users.conf` is made anew from all folders, so an identity ends when its folder is gone and the file is made again.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use folgore_actors::nats::Identity;
use folgore_protocol::{Role, names::check_name};
use nkeys::KeyPair;
use serde_json::json;

use super::{
    certificates::Authority,
    files::{self, Kept},
    permissions::{self, Permissions},
};

/// Folder of all identities.
pub const IDENTITIES: &str = "identities";
/// The users as the server reads them.
pub const USERS: &str = "users.conf";
const PUBLIC: &str = "public.nk";
const ROLE: &str = "role";
const NAME: &str = "name";

/// What the server knows of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// What it may do.
    pub role: Role,
    /// Its public key.
    pub public: String,
}

/// The identities in `dir`, by name.
pub fn all(dir: &Path) -> Result<BTreeMap<String, Known>> {
    let folder = dir.join(IDENTITIES);
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let entry = entry.with_context(|| folder.display().to_string())?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // what is being made has a dot in front
        if name.starts_with('.') || !entry.path().is_dir() {
            continue;
        }
        check_name("identity", &name).map_err(anyhow::Error::msg).context(entry.path().display().to_string())?;
        found.insert(name, known(&entry.path())?);
    }
    Ok(found)
}

fn known(folder: &Path) -> Result<Known> {
    let public_path = folder.join(PUBLIC);
    let public = files::read(&public_path)?.trim().to_owned();
    let user = KeyPair::from_public_key(&public).is_ok_and(|key| key.public_key().starts_with('U'));
    if !user {
        bail!("{}: expected the public nkey of a user (U...), got {public:?}", public_path.display());
    }
    let role_path = folder.join(ROLE);
    let role = files::read(&role_path)?;
    Ok(Known { role: role_named(role.trim()).with_context(|| role_path.display().to_string())?, public })
}

/// An identity as its process has it: the folder may have another name there.
pub struct Carried {
    /// The name that the server knows it under.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Its keys.
    pub keys: Identity,
}

/// Reads the identity in `folder`.
pub fn open(folder: &Path) -> Result<Carried> {
    let line = |file: &str| Ok::<_, anyhow::Error>(files::read(&folder.join(file))?.trim().to_owned());
    let keys = Identity::read(folder)?;
    let (name, role) = (line(NAME)?, line(ROLE)?);
    check_name("identity", &name)
        .map_err(anyhow::Error::msg)
        .with_context(|| folder.join(NAME).display().to_string())?;
    let role = role_named(&role).with_context(|| folder.join(ROLE).display().to_string())?;
    Ok(Carried { name, role, keys })
}

/// The role called `name`.
pub fn role_named(name: &str) -> Result<Role> {
    let roles = Role::ALL.map(Role::name).join(", ");
    Role::ALL
        .into_iter()
        .find(|role| role.name() == name)
        .with_context(|| format!("no role is called {name:?}: expected one of {roles}"))
}

/// Makes the identity `name` unless it is there; true if it was made. One that is there must have the role.
pub fn add_missing(dir: &Path, authority: &Authority, name: &str, role: Role) -> Result<bool> {
    let folder = dir.join(IDENTITIES).join(name);
    if !folder.exists() {
        return add(dir, authority, name, role, false).map(|_| true);
    }
    let there = known(&folder)?.role;
    if there != role {
        bail!("{}: made for the role {there}, and asked for as {role}: delete it first", folder.display());
    }
    Ok(false)
}

/// Makes the identity `name`; one that is there is replaced if `replace` says so, and refused otherwise. Gives its folder,
/// which appears whole or not at all.
pub fn add(dir: &Path, authority: &Authority, name: &str, role: Role, replace: bool) -> Result<PathBuf> {
    check_name("identity", name).map_err(anyhow::Error::msg)?;
    let folder = dir.join(IDENTITIES).join(name);
    if folder.exists() && !replace {
        bail!("{}: the name is taken; --replace makes new keys, and the old ones end", folder.display());
    }
    let part = dir.join(IDENTITIES).join(format!(".{name}.part"));
    if part.exists() {
        fs::remove_dir_all(&part).with_context(|| part.display().to_string())?;
    }
    files::make_folder(&part)?;
    let user = KeyPair::new_user();
    let signed = authority.client(name)?;
    files::write(&part.join("nkey.seed"), &format!("{}\n", user.seed()?))?;
    files::write(&part.join("ca.pem"), &authority.cert)?;
    files::write(&part.join("cert.pem"), &signed.cert)?;
    files::write(&part.join("key.pem"), &signed.key)?;
    files::write(&part.join(NAME), &format!("{name}\n"))?;
    files::write(&part.join(ROLE), &format!("{role}\n"))?;
    files::write(&part.join(PUBLIC), &format!("{}\n", user.public_key()))?;
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    fs::rename(&part, &folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}

/// Makes `users.conf` say what the folders say.
pub fn write_users(dir: &Path) -> Result<Kept> {
    files::keep(&dir.join(USERS), &users_file(&all(dir)?)?)
}

/// The users with their allow-lists.
fn users_file(identities: &BTreeMap<String, Known>) -> Result<String> {
    let mut text =
        "# Written by `folgore nats`, from the folders in identities/. Changes made here are lost.\nusers: [\n"
            .to_owned();
    for (name, Known { role, public }) in identities {
        let Permissions { publish, subscribe } = permissions::of(*role, name);
        writeln!(text, "  # {name}: {role}")?;
        writeln!(text, "  {{ nkey: {public}, permissions: {{")?;
        writeln!(text, "      publish: {{ allow: {} }}", json!(publish))?;
        writeln!(text, "      subscribe: {{ allow: {} }}", json!(subscribe))?;
        writeln!(text, "  }} }}")?;
    }
    text.push_str("]\n");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet() -> (tempfile::TempDir, Authority) {
        let dir = tempfile::tempdir().unwrap();
        files::make_folder(&dir.path().join(IDENTITIES)).unwrap();
        let (authority, _) = Authority::open(dir.path()).unwrap();
        (dir, authority)
    }

    #[test]
    fn a_name_is_taken_once_and_replaced_on_request() {
        let (dir, authority) = fleet();
        let folder = add(dir.path(), &authority, "w1", Role::Rollout, false).unwrap();
        let before = all(dir.path()).unwrap();
        let error = add(dir.path(), &authority, "w1", Role::Reward, false).unwrap_err().to_string();
        assert!(error.contains("w1") && error.contains("--replace"), "{error}");
        assert_eq!(all(dir.path()).unwrap(), before);
        assert_eq!(add(dir.path(), &authority, "w1", Role::Reward, true).unwrap(), folder);
        let after = all(dir.path()).unwrap();
        assert!(after["w1"].role == Role::Reward && after["w1"].public != before["w1"].public);
        for bad in ["", "a.b", "a b", "*", ">", "..", "a/b"] {
            assert!(add(dir.path(), &authority, bad, Role::Rollout, false).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn the_server_reads_what_the_folders_say_and_no_secret() {
        let (dir, authority) = fleet();
        add(dir.path(), &authority, "w1", Role::Rollout, false).unwrap();
        let other = add(dir.path(), &authority, "w2", Role::Rollout, false).unwrap();
        assert_eq!(write_users(dir.path()).unwrap(), Kept::Written);
        assert_eq!(write_users(dir.path()).unwrap(), Kept::Same);
        let text = files::read(&dir.path().join(USERS)).unwrap();
        let seed = files::read(&other.join("nkey.seed")).unwrap();
        assert!(text.contains("traj.w1") && text.contains("traj.w2") && !text.contains(seed.trim()));
        fs::remove_dir_all(&other).unwrap();
        assert_eq!(write_users(dir.path()).unwrap(), Kept::Changed);
        assert!(!files::read(&dir.path().join(USERS)).unwrap().contains("w2"));
    }

    #[test]
    fn a_carried_folder_says_who_it_is() {
        let (dir, authority) = fleet();
        let made = add(dir.path(), &authority, "w1", Role::Reward, false).unwrap();
        let carried = dir.path().join("elsewhere");
        fs::rename(made, &carried).unwrap();
        let opened = open(&carried).unwrap();
        assert_eq!((opened.name.as_str(), opened.role), ("w1", Role::Reward));
        assert!(opened.keys.ca.is_some_and(|ca| ca.starts_with(&carried)));
        fs::remove_file(carried.join("key.pem")).unwrap();
        assert!(open(&carried).err().unwrap().to_string().contains("key.pem"));
    }

    #[test]
    fn a_damaged_folder_is_named() {
        let (dir, authority) = fleet();
        let folder = add(dir.path(), &authority, "w1", Role::Rollout, false).unwrap();
        fs::write(folder.join(ROLE), "emperor\n").unwrap();
        let error = format!("{:#}", all(dir.path()).unwrap_err());
        assert!(error.contains("w1") && error.contains("emperor") && error.contains("retriever"), "{error}");
        fs::write(folder.join(ROLE), "rollout\n").unwrap();
        fs::write(folder.join(PUBLIC), "AAAA\n").unwrap();
        assert!(format!("{:#}", all(dir.path()).unwrap_err()).contains("public.nk"));
    }
}
