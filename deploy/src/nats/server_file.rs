//! A server's folder: its settings, its configuration file and its certificate. Everything in it can be made again without
//! changing what was there, except keys, which are made once.

use std::{
    net::{IpAddr, Ipv6Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use folgore_protocol::Role;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    certificates::Authority,
    files::{self, Kept},
    identities,
};

/// The configuration file.
pub const CONF: &str = "server.conf";
/// Process id of the server, while it runs.
pub const PID: &str = "nats.pid";
/// The identity of the head.
pub const HEAD: &str = "head";
const SETTINGS: &str = "settings.json";
const TLS: &str = "tls";
const SERVER_CERT: &str = "server.pem";
const SERVER_KEY: &str = "server.key";
const PORT: u16 = 4222;
/// Most that the store takes, unless the disk is small or the user says otherwise.
const STORE: u64 = 20 << 30;
/// Share of the free disk that the store may take: on a full disk publishers get no answer at all.
const DISK_SHARE: f64 = 0.8;

/// What a user asks for; what is not asked for stays as it was.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Names and addresses by which the server is reached from elsewhere; added to those of before.
    pub hosts: Vec<String>,
    /// Port.
    pub port: Option<u16>,
    /// Most bytes of the store.
    pub max_file_store: Option<u64>,
    /// Identities to make if they are not there, with their roles.
    pub workers: Vec<(String, Role)>,
}

/// What a server's files are made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// All names and addresses of its certificate.
    pub hosts: Vec<String>,
    /// Port.
    pub port: u16,
    /// Most bytes of the store.
    pub max_file_store: u64,
}

/// A server's folder after [`init`].
#[derive(Debug)]
pub struct ServerDir {
    /// The folder, absolute.
    pub path: PathBuf,
    /// What its files were made from.
    pub settings: Settings,
    /// What was made or changed, for people; empty if all was there.
    pub done: Vec<String>,
}

/// Makes a server's folder, or what is missing in it.
pub fn init(dir: &Path, asked: &Asked) -> Result<ServerDir> {
    files::make_folder(dir)?;
    let path = files::absolute(dir)?;
    let mut done = Vec::new();
    let before = read_settings(&path)?;
    let settings = Settings::merge(before.clone(), asked, &path)?;
    let (authority, made) = open_authority(&path)?;
    if made {
        done.push("made the certificate authority".to_owned());
    }
    let hosts_before = before.map(|s| s.hosts);
    done.extend(certify(&path.join(TLS), &authority, &settings.hosts, hosts_before.as_deref())?);
    files::make_folder(&path.join(identities::IDENTITIES))?;
    let head = (HEAD.to_owned(), Role::Head);
    for (name, role) in asked.workers.iter().chain([&head]) {
        if identities::add_missing(&path, &authority, name, *role)? {
            done.push(format!("made the identity {name}"));
        }
    }
    files::make_folder(&path.join("data"))?;
    let texts = [(SETTINGS, settings.text()?), (CONF, conf(&path, &settings))];
    for (name, text) in texts {
        note(&mut done, name, files::keep(&path.join(name), &text)?);
    }
    note(&mut done, identities::USERS, identities::write_users(&path)?);
    Ok(ServerDir { path, settings, done })
}

/// The authority of the server in `dir`, and whether it was made just now.
pub fn open_authority(dir: &Path) -> Result<(Authority, bool)> {
    files::make_folder(&dir.join(TLS))?;
    Authority::open(&dir.join(TLS))
}

/// The settings of the server in `dir`, which must have been made.
pub fn settings(dir: &Path) -> Result<Settings> {
    read_settings(dir)?
        .with_context(|| format!("{}: no server is set up there; `folgore nats init` does", dir.display()))
}

fn note(done: &mut Vec<String>, name: &str, kept: Kept) {
    match kept {
        Kept::Written => done.push(format!("wrote {name}")),
        Kept::Changed => done.push(format!("changed {name}")),
        Kept::Same => {}
    }
}

/// Issues the server's certificate if there is none, or none for all `hosts`; its key is made once.
fn certify(tls: &Path, authority: &Authority, hosts: &[String], before: Option<&[String]>) -> Result<Option<String>> {
    let (cert, key) = (tls.join(SERVER_CERT), tls.join(SERVER_KEY));
    let key_before = files::read_if_there(&key)?;
    if key_before.is_some() && cert.exists() && before == Some(hosts) {
        return Ok(None);
    }
    let signed =
        authority.server(hosts, key_before.as_deref()).with_context(|| format!("hosts {}", hosts.join(", ")))?;
    if key_before.is_none() {
        files::write(&key, &signed.key)?;
    }
    files::write(&cert, &signed.cert)?;
    Ok(Some(format!("issued the server's certificate for {}", hosts.join(", "))))
}

fn read_settings(dir: &Path) -> Result<Option<Settings>> {
    let path = dir.join(SETTINGS);
    let Some(text) = files::read_if_there(&path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).with_context(|| path.display().to_string())
}

impl Settings {
    fn merge(before: Option<Self>, asked: &Asked, dir: &Path) -> Result<Self> {
        let mut settings = match before {
            Some(before) => before,
            None => Self {
                hosts: ["localhost", "127.0.0.1", "::1"].map(String::from).into(),
                port: PORT,
                max_file_store: default_store(dir)?,
            },
        };
        for host in &asked.hosts {
            check_host(host)?;
            if !settings.hosts.contains(host) {
                settings.hosts.push(host.clone());
            }
        }
        settings.port = asked.port.unwrap_or(settings.port);
        settings.max_file_store = asked.max_file_store.unwrap_or(settings.max_file_store);
        if settings.port == 0 {
            bail!("--port 0: expected a port from 1 to 65535, by which workers find the server");
        }
        Ok(settings)
    }

    fn text(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Reached from elsewhere, once a name or address other than this machine's own is among them.
    fn listens_on(&self) -> &'static str {
        let elsewhere: Vec<&String> = self.hosts.iter().filter(|host| !is_here(host)).collect();
        match elsewhere.iter().any(|host| host.parse::<Ipv6Addr>().is_ok()) {
            // both kinds of addresses
            true => "\"::\"",
            false if elsewhere.is_empty() => "127.0.0.1",
            false => "0.0.0.0",
        }
    }

    /// The address for a process on this machine.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Addresses for processes elsewhere.
    pub fn urls_from_elsewhere(&self) -> Vec<String> {
        let url = |host: &String| match host.parse::<Ipv6Addr>() {
            Ok(ip) => format!("nats://[{ip}]:{}", self.port),
            Err(_) => format!("nats://{host}:{}", self.port),
        };
        self.hosts.iter().filter(|host| !is_here(host)).map(url).collect()
    }
}

/// Whether `host` is this machine for whoever says it.
fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn check_host(host: &str) -> Result<()> {
    let dns = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if host.parse::<IpAddr>().is_err() && (host.is_empty() || host.len() > 253 || !host.chars().all(dns)) {
        bail!("--host {host:?}: expected the DNS name or the IP address by which workers reach the server");
    }
    Ok(())
}

fn default_store(dir: &Path) -> Result<u64> {
    let free = fs4::available_space(dir).with_context(|| dir.display().to_string())?;
    Ok(STORE.min((free as f64 * DISK_SHARE) as u64) >> 20 << 20)
}

/// Bytes from `20GB`, `512MB` or a plain number; units are powers of 1024, as the server has them.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let expected = || format!("{text:?}: expected a number of bytes such as 20GB or 512MB");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(expected()),
    };
    let number: u64 = digits.parse().map_err(|_| expected())?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0 && *bytes <= i64::MAX as u64).ok_or_else(expected)
}

/// The configuration file. Paths are absolute, so that the server can be started from anywhere; every connection is TLS 1.3
/// from its first byte with a certificate of our authority, and every user is an nkey with an allow-list.
fn conf(dir: &Path, settings: &Settings) -> String {
    let file = |name: &str| json!(dir.join(name)).to_string();
    let Settings { port, max_file_store, .. } = settings;
    format!(
        r#"# Written by `folgore nats init` from settings.json. Changes made here are lost; change the options of init instead.
server_name: folgore
host: {host}
port: {port}
pid_file: {pid}
tls {{
  cert_file: {cert}
  key_file: {key}
  ca_file: {ca}
  verify: true
  min_version: "1.3"
  handshake_first: true
  timeout: 3
}}
authorization {{ timeout: 2 }}
max_payload: 1MB
max_control_line: 4KB
max_connections: 2048
max_subscriptions: 4096
max_pending: 32MB
write_deadline: "10s"
ping_interval: "20s"
ping_max: 2
lame_duck_duration: "30s"
lame_duck_grace_period: "5s"
# an acknowledged message survives the loss of power
jetstream {{
  store_dir: {data}
  sync_interval: always
  strict: true
  max_memory_store: 64MB
  max_file_store: {max_file_store}
}}
accounts {{
  # nobody can connect as it
  SYS {{ }}
  RL {{
    jetstream {{
      max_mem: 64MB
      max_file: {max_file_store}
      max_streams: 64
      max_consumers: 512
      max_stream_bytes: true
    }}
    include "{users}"
  }}
}}
system_account: SYS
"#,
        host = settings.listens_on(),
        pid = file(PID),
        cert = file(&format!("{TLS}/{SERVER_CERT}")),
        key = file(&format!("{TLS}/{SERVER_KEY}")),
        ca = file(&format!("{TLS}/{}", super::certificates::CA_CERT)),
        data = file("data"),
        users = identities::USERS,
    )
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs};

    use super::*;

    /// Everything below `dir`.
    fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(contents(&path));
            } else {
                found.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
        found
    }

    #[test]
    fn a_second_time_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let asked = Asked {
            hosts: vec!["gpu-1".into()],
            port: Some(4333),
            max_file_store: Some(8 << 30),
            workers: vec![("w1".into(), Role::Rollout), ("judge".into(), Role::Reward)],
        };
        let first = init(dir.path(), &asked).unwrap();
        assert!(!first.done.is_empty());
        let before = contents(dir.path());
        for asked in [asked, Asked::default()] {
            let again = init(dir.path(), &asked).unwrap();
            assert_eq!((again.done.as_slice(), &again.settings), (&[][..], &first.settings));
            assert!(contents(dir.path()) == before);
        }
    }

    #[test]
    fn an_identity_keeps_its_role() {
        let dir = tempfile::tempdir().unwrap();
        let with = |role| Asked { workers: vec![("w1".into(), role)], ..Asked::default() };
        init(dir.path(), &with(Role::Rollout)).unwrap();
        assert_eq!(identities::all(dir.path()).unwrap()["w1"].role, Role::Rollout);
        let error = init(dir.path(), &with(Role::Reward)).unwrap_err().to_string();
        assert!(error.contains("w1") && error.contains("rollout") && error.contains("reward"), "{error}");
    }

    #[test]
    fn another_host_costs_a_certificate_and_no_key() {
        let dir = tempfile::tempdir().unwrap();
        let first = init(dir.path(), &Asked::default()).unwrap();
        assert_eq!(first.settings.listens_on(), "127.0.0.1");
        let key = || fs::read(dir.path().join(TLS).join(SERVER_KEY)).unwrap();
        let before = key();
        let hosts = |hosts: &[&str]| Asked { hosts: hosts.iter().map(|h| h.to_string()).collect(), ..Asked::default() };
        let named = init(dir.path(), &hosts(&["gpu-1"])).unwrap();
        assert_eq!(named.settings.listens_on(), "0.0.0.0");
        let again = init(dir.path(), &hosts(&["10.0.0.7", "fd00::7"])).unwrap();
        assert_eq!(again.settings.listens_on(), "\"::\"");
        assert!(key() == before && again.done.iter().any(|d| d.contains("10.0.0.7")), "{:?}", again.done);
        let urls = ["nats://gpu-1:4222", "nats://10.0.0.7:4222", "nats://[fd00::7]:4222"];
        assert_eq!(again.settings.urls_from_elsewhere(), urls);
        let bad = Asked { hosts: vec!["no host".into()], ..Asked::default() };
        assert!(init(dir.path(), &bad).unwrap_err().to_string().contains("no host"));
    }

    #[test]
    fn bytes_are_read_as_the_server_reads_them() {
        assert_eq!(parse_bytes("20GB"), Ok(20 << 30));
        assert_eq!(parse_bytes("512mb"), Ok(512 << 20));
        assert_eq!(parse_bytes("1000"), Ok(1000));
        for bad in ["", "GB", "0", "-1GB", "1.5GB", "20 GB", "20XB", "99999999999TB"] {
            assert!(parse_bytes(bad).unwrap_err().contains("expected"), "{bad:?}");
        }
    }
}
