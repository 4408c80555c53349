//! The server of the compose file and that of the chart, held to a real `nats-server`.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use folgore_actors::nats::server::{LocalServer, ServerOptions, nats_server_for_tests};
use serde_json::Value;

use super::{
    compose, document, flag,
    kubernetes::Secrets,
    support::{folder, folgore, run},
    text,
};

/// Asks the server whether it takes `config`; what it says if not.
fn refused(config: &Path) -> Option<String> {
    let output = Command::new(nats_server_for_tests().unwrap()).args(["-t", "-c"]).arg(config).output().unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Makes the folder of the server as the compose file does, at `root/nats`.
fn init(root: &Path) {
    let mut arguments = compose::command("nats-init");
    let dir = flag(&arguments, "--dir").unwrap();
    for argument in &mut arguments {
        if *argument == format!("--dir={dir}") {
            *argument = format!("--dir={}", root.join("nats").display());
        }
    }
    for expected in ["made the identity rollout-2", "nothing changed"] {
        let said = run(folgore(&arguments)).well().stdout;
        assert!(said.contains(expected), "{said}");
    }
}

/// The file that the container starts with, at its place beside the server's own.
fn container_conf(root: &Path) -> std::path::PathBuf {
    let path = root.join("etc/folgore/nats.conf");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text("docker/nats.conf")).unwrap();
    path
}

#[test]
fn the_compose_files_server_takes_its_file() {
    let root = folder();
    init(root.path());
    let conf = container_conf(root.path());
    assert_eq!(refused(&conf), None);
    assert_eq!(compose::command("nats"), ["nats-server", "-c", "/etc/folgore/nats.conf"]);
    fs::remove_file(root.path().join("nats/server.conf")).unwrap();
    assert!(refused(&conf).unwrap().contains("server.conf"), "it is the file of `nats init` that is taken");
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The answer to `GET path` on this machine.
fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// The page that the health check and the autoscaler read: what they look for is on it once a run is there.
#[test]
fn the_server_shows_what_is_looked_for() {
    let root = folder();
    init(root.path());
    let (port, page) = (free_port(), free_port());
    let dir = root.path().join("nats").display().to_string();
    run(folgore(["nats", "init", "--dir", &dir, "--port", &port.to_string()])).well();
    let conf = container_conf(root.path());
    fs::write(&conf, text("docker/nats.conf").replace("8222", &page.to_string())).unwrap();
    let options = ServerOptions {
        config_file: Some(conf),
        port: Some(port),
        with_parent: true,
        ..ServerOptions::new(root.path().join("nats/data"))
    };
    let _server = LocalServer::start_with(nats_server_for_tests().unwrap(), options).unwrap();
    let url = format!("nats://127.0.0.1:{port}");
    run(folgore(["nats", "init", "--dir", &dir, "--nats", &url, "--run", "demo"])).well();

    let health = &document("docker/compose.yaml")["services"]["nats"]["healthcheck"]["test"];
    let asked = health.as_array().unwrap().last().unwrap().as_str().unwrap().to_owned();
    let path = asked.strip_prefix("http://127.0.0.1:8222").unwrap();
    assert!(get(page, path).contains("\"ok\""));

    let scaled = document("kubernetes/keda/scaled-object.yaml");
    let metadata = &scaled["spec"]["triggers"][0]["metadata"];
    let asked = |key: &str| metadata[key].as_str().unwrap();
    let told = get(page, &format!("/jsz?acc={}&consumers=true&config=true", asked("account")));
    let told: Value = serde_json::from_str(&told).unwrap();
    let find = |list: &Value, name: &str| {
        let found = list.as_array().into_iter().flatten().find(|entry| entry["name"] == name).cloned();
        found.unwrap_or_else(|| panic!("no {name} in {list}"))
    };
    let account = find(&told["account_details"], asked("account"));
    let stream = find(&account["stream_detail"], asked("stream"));
    let consumer = find(&stream["consumer_detail"], asked("consumer"));
    assert_eq!((&consumer["num_pending"], &consumer["num_ack_pending"]), (&0.into(), &0.into()));
}

/// `nats.conf` as the chart makes it of its values: the parts of its template that our values reach, then ours merged in; keys
/// that end in `$include` become directives, and texts in `<< >>` lose their quotes.
fn chart_conf(values: &Value, etc: &Path, users: &Path) -> String {
    let config = &values["config"];
    let tls = etc.join("tls").display().to_string();
    let mut made = serde_json::json!({
        "port": 4222,
        "http_port": 8222,
        "tls": { "cert_file": format!("{tls}/tls.crt"), "key_file": format!("{tls}/tls.key"),
                 "ca_file": format!("{tls}/{}", values["tlsCA"]["key"].as_str().unwrap()) },
        "jetstream": {
            "store_dir": etc.join("data"),
            "max_memory_store": format!("<< {} >>", config["jetstream"]["memoryStore"]["maxSize"].as_str().unwrap()),
            "max_file_store": format!("<< {} >>", config["jetstream"]["fileStore"]["maxSize"].as_str().unwrap()),
        },
    });
    merge(&mut made["tls"], &config["nats"]["tls"]["merge"]);
    merge(&mut made["jetstream"], &config["jetstream"]["merge"]);
    merge(&mut made, &config["merge"]);
    let mut text = String::new();
    for line in serde_json::to_string_pretty(&made).unwrap().lines() {
        let line = match line.trim().strip_prefix("\"$include\": \"") {
            Some(path) => {
                assert_eq!(path.trim_end_matches(['"', ',']), "../folgore-users/users.conf");
                format!("include {};", users.display())
            }
            None => line.replace("\"<< ", "").replace(" >>\"", ""),
        };
        text += &(line + "\n");
    }
    text
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.as_str()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

#[test]
fn the_charts_server_takes_our_values() {
    let secrets = Secrets::make(1);
    let values = document("kubernetes/nats-values.yaml");
    let etc = secrets.dir.path().join("etc");
    fs::create_dir_all(etc.join("tls")).unwrap();
    for (key, path) in &secrets.made["folgore-nats-tls"] {
        fs::copy(path, etc.join("tls").join(key)).unwrap();
    }
    fs::copy(&secrets.made["folgore-nats-users"]["users.conf"], etc.join("users.conf")).unwrap();
    let conf = etc.join("nats.conf");
    let text = chart_conf(&values, &etc, Path::new("users.conf"));
    fs::write(&conf, &text).unwrap();
    assert_eq!(refused(&conf), None, "{text}");
    fs::write(&conf, text.replace("users.conf", "nobody.conf")).unwrap();
    assert!(refused(&conf).unwrap().contains("nobody.conf"), "users are those of the secret");

    // mounted where the values say that they are
    for (at, secret) in [("/tlsCA/secretName", "folgore-nats-tls"), ("/config/nats/tls/secretName", "folgore-nats-tls")]
    {
        assert_eq!(values.pointer(at).unwrap(), secret);
    }
    assert!(secrets.made["folgore-nats-tls"].contains_key(values["tlsCA"]["key"].as_str().unwrap()));
    let (mount, volume) = (&values["container"]["patch"][0]["value"], &values["podTemplate"]["patch"][0]["value"]);
    assert_eq!((&mount["name"], mount["mountPath"].as_str()), (&volume["name"], Some("/etc/folgore-users")));
    assert_eq!(volume["secret"]["secretName"], "folgore-nats-users");
}

/// The chart's server is as strict as the one that `nats init` sets up: every limit has the same value.
#[test]
fn both_servers_have_the_same_limits() {
    let root = folder();
    init(root.path());
    let ours = fs::read_to_string(root.path().join("nats/server.conf")).unwrap();
    let config = &document("kubernetes/nats-values.yaml")["config"];
    let compared = [&config["merge"], &config["nats"]["tls"]["merge"], &config["jetstream"]["merge"]];
    let mut count = 0;
    for (key, value) in compared.iter().flat_map(|part| part.as_object().unwrap()) {
        let text = match value {
            Value::String(text) => text.trim_matches(['<', '>', ' ']).to_owned(),
            Value::Object(_) => continue,
            other => other.to_string(),
        };
        let line = ours.lines().find_map(|line| line.trim().strip_prefix(&format!("{key}: ")));
        assert_eq!(line.map(|line| line.trim_matches('"').to_owned()), Some(text), "{key}");
        count += 1;
    }
    assert!(count >= 12, "{count}");
}
