//! Where the hub and its cache are, by the variables that all programs of Hugging Face read.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// The hub, unless `HF_ENDPOINT` names another.
const ENDPOINT: &str = "https://huggingface.co";

/// How long and how often the server is asked.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For the beginning of an answer, and from each piece of it to the next.
    pub silence: Duration,
    /// How often one thing is asked for in a row without getting on.
    pub attempts: u32,
    /// Before the second attempt; twice as long before each further one, up to a minute.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            attempts: 5,
            pause: Duration::from_secs(1),
        }
    }
}

/// Where the hub is, and what may be asked of it.
#[derive(Clone)]
pub struct Settings {
    /// Address of the hub, without a slash at its end.
    pub endpoint: String,
    /// Folder of the cache, which holds `models--owner--name`.
    pub cache: PathBuf,
    /// The user's token. It is sent to the endpoint and nowhere else.
    pub token: Option<String>,
    /// Only the cache counts: nothing is asked.
    pub offline: bool,
    /// How long and how often.
    pub patience: Patience,
}

impl Settings {
    /// From `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH` (or the file `token` in `HF_HOME`),
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HUB_OFFLINE` and `TRANSFORMERS_OFFLINE`.
    ///
    /// # Errors
    /// If no variable says where the cache is and the user has no home.
    pub fn from_env() -> Result<Self, crate::HubError> {
        Self::of(&|name| std::env::var_os(name), std::env::home_dir())
    }

    fn of(variable: &dyn Fn(&str) -> Option<OsString>, user: Option<PathBuf>) -> Result<Self, crate::HubError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        let path = |name: &str| set(name).map(|value| at_home(PathBuf::from(value), user.as_deref()));
        let yes = |name: &str| text(name).is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&&*v.to_uppercase()));
        let home = path("HF_HOME").or_else(|| {
            let caches = path("XDG_CACHE_HOME").or_else(|| Some(user.as_deref()?.join(".cache")))?;
            Some(caches.join("huggingface"))
        });
        let within = |name: &str| home.as_ref().map(|home| home.join(name));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).or_else(|| within("hub"));
        let cache = cache.ok_or_else(|| {
            crate::HubError::Settings("no folder for the cache of the hub: the user has no home; set HF_HOME".into())
        })?;
        let file = path("HF_TOKEN_PATH").or_else(|| within("token"));
        let token = text("HF_TOKEN").or_else(|| fs::read_to_string(file?).ok());
        // what is not asked for by a call is implicit, and no call here asks
        let token = token.filter(|_| !yes("HF_HUB_DISABLE_IMPLICIT_TOKEN"));
        Ok(Self {
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into()).trim_end_matches('/').to_owned(),
            cache,
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            // as Python: the first that says anything counts
            offline: if set("HF_HUB_OFFLINE").is_some() { yes("HF_HUB_OFFLINE") } else { yes("TRANSFORMERS_OFFLINE") },
            patience: Patience::default(),
        })
    }
}

/// `~/x` is in the user's home.
fn at_home(path: PathBuf, user: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), user) {
        (Ok(rest), Some(user)) => user.join(rest),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Settings {
        let look = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        Settings::of(&look, Some("/home/me".into())).unwrap()
    }

    #[test]
    fn the_cache_is_where_python_has_it() {
        for (variables, cache) in [
            (vec![], "/home/me/.cache/huggingface/hub"),
            (vec![("XDG_CACHE_HOME", "/c")], "/c/huggingface/hub"),
            (vec![("XDG_CACHE_HOME", "/c"), ("HF_HOME", "~/hf")], "/home/me/hf/hub"),
            (vec![("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (vec![("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/new")], "/new"),
            (vec![("HF_HOME", "")], "/home/me/.cache/huggingface/hub"),
        ] {
            assert_eq!(of(&variables).cache, Path::new(cache), "{variables:?}");
        }
        assert!(Settings::of(&|_| None, None).is_err_and(|e| e.to_string().contains("HF_HOME")));
    }

    #[test]
    fn offline_endpoint_and_token_are_read() {
        assert_eq!(of(&[]).endpoint, ENDPOINT);
        assert_eq!(of(&[("HF_ENDPOINT", "http://mirror.lan/")]).endpoint, "http://mirror.lan");
        for (variables, offline) in [
            (vec![("HF_HUB_OFFLINE", "1")], true),
            (vec![("HF_HUB_OFFLINE", "true")], true),
            (vec![("TRANSFORMERS_OFFLINE", "1")], true),
            (vec![("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")], false),
            (vec![], false),
        ] {
            assert_eq!(of(&variables).offline, offline, "{variables:?}");
        }
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("token"), "hf_file\n").unwrap();
        let at = home.path().to_str().unwrap();
        assert_eq!(of(&[("HF_HOME", at)]).token.as_deref(), Some("hf_file"));
        assert_eq!(of(&[("HF_HOME", at), ("HF_TOKEN", "hf_set ")]).token.as_deref(), Some("hf_set"));
        assert_eq!(of(&[("HF_HOME", "/nothing")]).token, None);
        assert_eq!(of(&[("HF_TOKEN", "hf_set"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token, None);
        assert_eq!(of(&[("HF_HOME", at), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "true")]).token, None);
        assert!(of(&[("HF_TOKEN", "hf_set"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "0")]).token.is_some());
    }
}
