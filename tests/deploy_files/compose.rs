//! `deploy/docker/compose.yaml` and the files beside it.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{document, faults, files, flag, flags, image, root, schema, strings, text};

fn compose() -> Value {
    document("docker/compose.yaml")
}

fn services(compose: &Value) -> &Map<String, Value> {
    compose["services"].as_object().unwrap()
}

fn names(map: &Value) -> BTreeSet<String> {
    map.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

/// The command line of a service of ours, without the executable.
pub fn command(service: &str) -> Vec<String> {
    strings(&compose()["services"][service]["command"])
}

fn is_ours(service: &Value) -> bool {
    service["image"].as_str().is_some_and(|image| image.starts_with("folgore:"))
}

/// Source, target and the folder in the volume of what a service mounts.
fn mounts(service: &Value) -> Vec<(String, String, Option<String>)> {
    let of = |mount: &Value| match mount.as_str() {
        Some(short) => {
            let mut parts = short.split(':').map(str::to_owned);
            (parts.next().unwrap(), parts.next().unwrap(), None)
        }
        None => {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            let (source, target) = (text(&mount["source"]).unwrap(), text(&mount["target"]).unwrap());
            (source, target, text(&mount["volume"]["subpath"]))
        }
    };
    service["volumes"].as_array().into_iter().flatten().map(of).collect()
}

#[test]
fn it_is_a_compose_file() {
    let (schema, mut compose) = (schema("compose.json"), compose());
    assert_eq!(faults(&schema, "", &compose), None);
    compose["services"]["head"]["comand"] = json!(["train"]);
    assert!(faults(&schema, "", &compose).unwrap().contains("comand"), "the schema finds what nothing would read");
    let services = services(&compose);
    assert_eq!(
        services.keys().map(String::as_str).collect::<Vec<_>>(),
        ["nats-init", "nats", "head", "rollout-1", "rollout-2", "otel-collector", "jaeger", "prometheus", "grafana"]
    );
}

#[test]
fn images_are_pinned_and_ours_is_this_version() {
    let compose = compose();
    for (name, service) in services(&compose) {
        let image = service["image"].as_str().unwrap();
        assert!(image::pinned(image), "{name}: {image}");
        if is_ours(service) {
            assert_eq!(image, format!("folgore:{}", image::version()), "{name}");
            let (context, dockerfile) = (&service["build"]["context"], &service["build"]["dockerfile"]);
            let context = root().join("deploy/docker").join(context.as_str().unwrap());
            assert!(context.join(dockerfile.as_str().unwrap()).is_file() && context.join(".dockerignore").is_file());
        }
    }
}

#[test]
fn what_it_refers_to_is_there() {
    let compose = compose();
    let (volumes, networks) = (names(&compose["volumes"]), names(&compose["networks"]));
    let mut used = BTreeSet::new();
    for (name, service) in services(&compose) {
        for network in strings(&service["networks"]) {
            assert!(networks.contains(&network), "{name}: {network}");
        }
        assert!(service["networks"].is_array() != service["network_mode"].is_string(), "{name} has one or the other");
        for (on, how) in service["depends_on"].as_object().into_iter().flatten() {
            let other = &compose["services"][on];
            match how["condition"].as_str().unwrap() {
                "service_healthy" => assert!(other["healthcheck"]["test"].is_array(), "{name} waits for {on}"),
                "service_completed_successfully" => assert_eq!(other["restart"], "no", "{name} waits for {on}"),
                other => panic!("{name}: {other}"),
            }
        }
        for (source, target, _) in mounts(service) {
            assert!(target.starts_with('/'), "{name}: {target}");
            match source.starts_with('.') {
                true => assert!(root().join("deploy/docker").join(&source).exists(), "{name}: {source}"),
                false => assert!(volumes.contains(&source), "{name}: {source}"),
            }
            used.insert(source);
        }
    }
    assert!(volumes.is_subset(&used), "a volume that nobody mounts: {volumes:?}");
}

/// Everybody may look at what watches the run, on this machine; nobody reaches the fleet.
#[test]
fn ports_are_for_this_machine() {
    let compose = compose();
    let mut seen = BTreeSet::new();
    for (name, service) in services(&compose) {
        for port in strings(&service["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port}");
            assert!(seen.insert(port.split(':').nth(1).unwrap().to_owned()), "{name}: {port} is taken");
        }
        let drops = service["cap_drop"] == json!(["ALL"]);
        assert!(drops && service["security_opt"] == json!(["no-new-privileges:true"]), "{name}");
        assert!(!is_ours(service) || service["read_only"] == true, "{name}");
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["16686", "3000", "9090"]);
}

#[test]
fn head_and_workers_are_of_one_run_and_have_identities_of_their_own() {
    let compose = compose();
    let init = command("nats-init");
    let mut made: BTreeSet<String> =
        flags(&init, "--worker").iter().map(|w| w.split(':').next().unwrap().into()).collect();
    made.insert("head".into());
    let head = command("head");
    let run = flag(&head, "--run-name").unwrap();
    let mut held = BTreeSet::new();
    for (name, service) in services(&compose).iter().filter(|(_, service)| is_ours(service)) {
        let arguments = command(name);
        if arguments[0] == "nats" {
            assert_eq!(mounts(service), [("nats".into(), flag(&init, "--dir").unwrap(), None)]);
            continue;
        }
        assert_eq!(flag(&arguments, "--run").or(flag(&arguments, "--run-name")).unwrap(), run, "{name}");
        let server = flag(&arguments, "--nats").unwrap();
        let (host, port) = server.strip_prefix("nats://").unwrap().split_once(':').unwrap();
        assert!(services(&compose).contains_key(host) && flags(&init, "--host").contains(&host.to_owned()), "{server}");
        assert_eq!(port, "4222");
        let folder = flag(&arguments, "--identity").unwrap();
        let part = mounts(service).into_iter().find(|(_, target, _)| *target == folder).and_then(|(_, _, part)| part);
        let identity = part.and_then(|part| Some(part.strip_prefix("identities/")?.to_owned())).unwrap();
        assert!(made.contains(&identity), "{name}: nobody makes {identity}");
        assert!(held.insert(identity), "{name}: two processes would be one to the server");
    }
    assert_eq!(held.len(), 3);
}

#[test]
fn the_server_belongs_to_who_made_its_files() {
    assert_eq!(compose()["services"]["nats"]["user"].as_str(), image::instructions("USER").pop().as_deref());
}

/// The host and the port of an address.
fn host_and_port(address: &str) -> (String, String) {
    let bare = address.split("://").last().unwrap();
    let (host, port) = bare.split_once(':').unwrap_or_else(|| panic!("{address}: no port"));
    (host.to_owned(), port.trim_end_matches('/').to_owned())
}

#[test]
fn traces_find_their_way() {
    let (compose, collector) = (compose(), document("docker/otel-collector.yaml"));
    let listens: BTreeSet<String> = collector["receivers"]["otlp"]["protocols"]
        .as_object()
        .unwrap()
        .values()
        .map(|protocol| host_and_port(protocol["endpoint"].as_str().unwrap()).1)
        .collect();
    for (name, service) in services(&compose).iter().filter(|(_, service)| is_ours(service)) {
        let (host, port) = host_and_port(service["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"].as_str().unwrap());
        assert!(services(&compose).contains_key(&host) && listens.contains(&port), "{name}: {host}:{port}");
    }
    for (name, pipeline) in collector["service"]["pipelines"].as_object().unwrap() {
        for (part, listed) in ["receivers", "processors", "exporters"].map(|part| (part, strings(&pipeline[part]))) {
            for component in listed {
                assert!(collector[part].get(&component).is_some(), "{name}: no {component} in {part}");
            }
        }
    }
    let (host, port) = host_and_port(collector["exporters"]["otlp/jaeger"]["endpoint"].as_str().unwrap());
    assert!(services(&compose).contains_key(&host) && port == "4317");
    let mounted = mounts(&compose["services"]["otel-collector"]).remove(0).1;
    assert_eq!(command("otel-collector"), [format!("--config={mounted}")]);
}

/// Every process of the run is scraped where it serves its metrics.
#[test]
fn metrics_are_looked_for_where_they_are() {
    let (compose, prometheus) = (compose(), document("docker/prometheus.yaml"));
    let mut scraped = BTreeSet::new();
    for target in strings(&prometheus["scrape_configs"][0]["static_configs"][0]["targets"]) {
        let (host, port) = host_and_port(&target);
        let arguments = command(&host);
        let served = flag(&arguments, "--metrics-port").unwrap_or_else(|| panic!("{host} serves no metrics"));
        assert_eq!(served.rsplit(':').next(), Some(port.as_str()), "{host}");
        assert!(strings(&compose["services"][&host]["networks"]).contains(&"watch".to_owned()), "{host}");
        let health = image::instructions("HEALTHCHECK").pop().unwrap();
        assert!(health.contains(&format!("/dev/tcp/127.0.0.1/{port}")), "{health}");
        scraped.insert(host);
    }
    assert_eq!(scraped.into_iter().collect::<Vec<_>>(), ["head", "rollout-1", "rollout-2"]);
    let command = command("prometheus");
    let config = flag(&command, "--config.file").unwrap();
    assert!(mounts(&compose["services"]["prometheus"]).iter().any(|(_, target, _)| *target == config));
    let store = flag(&command, "--storage.tsdb.path").unwrap();
    assert!(mounts(&compose["services"]["prometheus"]).iter().any(|(_, target, _)| *target == store));
}

/// Grafana finds its dashboards where they are mounted, and the numbers where they are kept.
#[test]
fn grafana_finds_what_it_shows() {
    let compose = compose();
    let mounts = mounts(&compose["services"]["grafana"]);
    let provider = document("grafana/provisioning/dashboards/folgore.yaml");
    let path = provider["providers"][0]["options"]["path"].as_str().unwrap();
    let (source, _, _) = mounts.iter().find(|(_, target, _)| target == path).expect("dashboards are mounted there");
    let dashboards = files(&root().join("deploy/docker").join(source), ".json");
    assert!(!dashboards.is_empty());
    let source = document("grafana/provisioning/datasources/prometheus.yaml");
    let (host, port) = host_and_port(source["datasources"][0]["url"].as_str().unwrap());
    assert!(services(&compose).contains_key(&host) && port == "9090", "{host}:{port}");
}

/// The page walks through a newcomer's first minutes: what it says to open is what is published.
#[test]
fn the_page_names_the_addresses() {
    let page = text("README.md");
    for (_, service) in services(&compose()) {
        for port in strings(&service["ports"]) {
            let address = port.rsplit_once(':').unwrap().0;
            assert!(page.contains(&format!("http://{address}")), "{address}");
        }
    }
}
