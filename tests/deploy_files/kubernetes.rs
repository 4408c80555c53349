//! `deploy/kubernetes/`: the manifests against the schemas of Kubernetes and KEDA, and against what they refer to.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fs::{self, OpenOptions},
    os::unix::fs::{OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use folgore_protocol::{Names, RunName, names::ROLLOUT_CONSUMER};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    document, documents, faults, files, flag, image, root, schema, strings,
    support::{self, folder},
};

const BASE: &str = "kubernetes/base";
const OVERLAYS: [&str; 2] = ["kubernetes/keda", "kubernetes/hpa"];

/// All objects, with the file that each is in. What a kustomization says of them is not applied.
pub fn objects() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for folder in [BASE, OVERLAYS[0], OVERLAYS[1]] {
        for path in strings(&document(&format!("{folder}/kustomization.yaml"))["resources"]) {
            if path.ends_with(".yaml") {
                let file = format!("{folder}/{path}");
                found.extend(documents(&file).into_iter().map(|object| (file.clone(), object)));
            }
        }
    }
    found
}

fn of_kind(kind: &str) -> Vec<Value> {
    objects().into_iter().map(|(_, object)| object).filter(|object| object["kind"] == kind).collect()
}

fn named(kind: &str, name: &str) -> Value {
    let mut found = of_kind(kind);
    found.retain(|object| object["metadata"]["name"] == name);
    assert_eq!(found.len(), 1, "{kind} {name}");
    found.remove(0)
}

/// The pods: those of a stateful set, by its name.
fn pods() -> Vec<(String, Value)> {
    let of = |set: Value| (set["metadata"]["name"].as_str().unwrap().to_owned(), set["spec"]["template"].clone());
    of_kind("StatefulSet").into_iter().map(of).collect()
}

fn containers(pod: &Value) -> Vec<&Value> {
    ["initContainers", "containers"]
        .iter()
        .flat_map(|kind| pod["spec"][kind].as_array().into_iter().flatten())
        .collect()
}

/// The command line of the executable in the pods of `set`.
fn command(set: &str) -> Vec<String> {
    strings(&named("StatefulSet", set)["spec"]["template"]["spec"]["containers"][0]["args"])
}

/// What the schema of an object's kind has against it.
fn faults_of(object: &Value) -> Option<String> {
    let (version, kind) = (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
    if version == "keda.sh/v1alpha1" {
        return faults(&schema("keda.json"), "", object);
    }
    let group = match version.split_once('/') {
        None => format!("core.{version}"),
        Some((group, version)) => format!("{}.{version}", group.trim_end_matches(".k8s.io")),
    };
    faults(&schema("kubernetes.json"), &format!("#/$defs/io.k8s.api.{group}.{kind}"), object)
}

#[test]
fn every_object_is_one_that_the_cluster_takes() {
    let objects = objects();
    assert!(objects.len() >= 10, "{}", objects.len());
    for (file, object) in &objects {
        assert_eq!(faults_of(object), None, "{file}");
    }
}

/// The schemas find what a cluster would refuse, or silently not do.
#[test]
fn a_wrong_object_is_found() {
    let mut set = named("StatefulSet", "folgore-head");
    set["spec"]["template"]["spec"]["containers"][0]["arg"] = json!(["train"]);
    assert!(faults_of(&set).unwrap().contains("arg"));
    let mut set = named("StatefulSet", "folgore-head");
    set["spec"]["replicas"] = json!("one");
    assert!(faults_of(&set).unwrap().contains("replicas"));
    let mut scaled = named("ScaledObject", "folgore-rollout");
    scaled["spec"]["maxReplicas"] = json!(16);
    assert!(faults_of(&scaled).unwrap().contains("maxReplicas"));
}

#[test]
fn kustomizations_name_every_file_and_each_is_there() {
    for folder in [BASE, OVERLAYS[0], OVERLAYS[1]] {
        let kustomization = document(&format!("{folder}/kustomization.yaml"));
        let mut listed: BTreeSet<PathBuf> = strings(&kustomization["resources"]).iter().map(PathBuf::from).collect();
        for map in kustomization["configMapGenerator"].as_array().into_iter().flatten() {
            listed.extend(strings(&map["files"]).iter().map(PathBuf::from));
        }
        let here = root().join("deploy").join(folder);
        for path in &listed {
            assert!(here.join(path).exists(), "{folder}: {}", path.display());
        }
        for file in files(&here, ".yaml") {
            let file = file.strip_prefix(&here).unwrap();
            assert!(listed.contains(file) || file == Path::new("kustomization.yaml"), "{folder}: {}", file.display());
        }
        for patch in kustomization["patches"].as_array().into_iter().flatten() {
            let target = &patch["target"];
            let object = named(target["kind"].as_str().unwrap(), target["name"].as_str().unwrap());
            let operations: Vec<Value> = serde_norway::from_str(patch["patch"].as_str().unwrap()).unwrap();
            for operation in operations {
                assert!(object.pointer(operation["path"].as_str().unwrap()).is_some(), "{folder}: {operation}");
            }
        }
    }
    let base = document("kubernetes/base/kustomization.yaml");
    assert_eq!(base["images"][0]["newTag"], image::version());
    assert_eq!(base["namespace"], of_kind("Namespace")[0]["metadata"]["name"]);
}

#[test]
fn pods_take_no_liberties() {
    let user: u64 = image::instructions("USER").pop().unwrap().split(':').next().unwrap().parse().unwrap();
    for (name, pod) in pods() {
        let (spec, context) = (&pod["spec"], &pod["spec"]["securityContext"]);
        assert_eq!(spec["automountServiceAccountToken"], false, "{name}");
        assert_eq!((&context["runAsNonRoot"], &context["runAsUser"]), (&json!(true), &json!(user)), "{name}");
        assert_eq!(context["fsGroup"], json!(user), "{name}: volumes and secrets are readable by their group");
        assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        for container in containers(&pod) {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{name}");
            for kind in ["cpu", "memory"] {
                assert!(container["resources"]["requests"][kind].is_string(), "{name}: {kind}");
            }
            assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
            assert_eq!(container["image"], document("kubernetes/base/kustomization.yaml")["images"][0]["name"]);
        }
    }
}

#[test]
fn what_pods_mount_is_there_and_what_is_there_is_mounted() {
    let secrets = Secrets::make(2);
    for (name, pod) in pods() {
        let set = named("StatefulSet", &name);
        let claims =
            set["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten().map(|c| &c["metadata"]["name"]);
        let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
        let there: BTreeSet<&str> =
            volumes.clone().map(|volume| &volume["name"]).chain(claims).map(|n| n.as_str().unwrap()).collect();
        let mounts = || containers(&pod).into_iter().flat_map(|c| c["volumeMounts"].as_array().unwrap());
        let mounted: BTreeSet<&str> = mounts().map(|mount| mount["name"].as_str().unwrap()).collect();
        assert_eq!(mounted, there, "{name}");
        for volume in volumes {
            if let Some(map) = volume["configMap"]["name"].as_str() {
                assert_eq!(document("kubernetes/base/kustomization.yaml")["configMapGenerator"][0]["name"], map);
            }
            if let Some(secret) = volume["secret"]["secretName"].as_str() {
                assert!(secrets.made.contains_key(secret), "{name}: nobody makes {secret}");
            }
        }
        // what the executable writes lies in a volume: everything else is read-only
        let targets: BTreeSet<&str> = mounts().map(|mount| mount["mountPath"].as_str().unwrap()).collect();
        assert!(targets.contains("/tmp") && targets.contains("/cache") && targets.contains("/identity"), "{targets:?}");
        let command = command(&name);
        for flag in ["--identity", "--output-dir"].iter().filter_map(|name| flag(&command, name)) {
            assert!(targets.contains(flag.as_str()), "{name}: {flag}");
        }
    }
    let run = command("folgore-head").into_iter().find(|argument| argument.ends_with("run.yaml")).unwrap();
    assert_eq!(run, "/etc/folgore/run.yaml");
}

#[test]
fn services_reach_their_pods_and_ports_have_names() {
    for (name, pod) in pods() {
        let set = named("StatefulSet", &name);
        let service = named("Service", set["spec"]["serviceName"].as_str().unwrap());
        let labels = pod["metadata"]["labels"].as_object().unwrap();
        for selector in [&service["spec"]["selector"], &set["spec"]["selector"]["matchLabels"]] {
            for (key, value) in selector.as_object().unwrap() {
                assert_eq!(labels.get(key), Some(value), "{name}");
            }
        }
        let ports: Vec<&Value> = pod["spec"]["containers"][0]["ports"].as_array().unwrap().iter().collect();
        assert!(ports.iter().any(|port| port["name"] == service["spec"]["ports"][0]["targetPort"]), "{name}");
        let served = flag(&command(&name), "--metrics-port").unwrap_or_else(|| panic!("{name} serves no metrics"));
        let served = served.rsplit(':').next().unwrap().parse::<u64>().unwrap();
        assert_eq!(
            (&ports[0]["containerPort"], &service["spec"]["ports"][0]["port"]),
            (&json!(served), &json!(served))
        );
    }
}

/// A policy that selects nothing protects nothing.
#[test]
fn policies_and_budgets_select_pods_that_there_are() {
    let values = document("kubernetes/nats-values.yaml");
    let nats = json!({ "app.kubernetes.io/name": "nats", "app.kubernetes.io/instance": values["fullnameOverride"] });
    let mut labels: Vec<Value> = pods().into_iter().map(|(_, pod)| pod["metadata"]["labels"].clone()).collect();
    labels.push(nats.clone());
    let selects = |selector: &Value| {
        let wanted = selector["matchLabels"].as_object().unwrap();
        assert!(!wanted.is_empty());
        labels.iter().filter(|labels| wanted.iter().all(|(key, value)| labels.get(key) == Some(value))).count()
    };
    assert_eq!(selects(&named("PodDisruptionBudget", "folgore-rollout")["spec"]["selector"]), 1);
    assert_eq!(selects(&named("NetworkPolicy", "folgore")["spec"]["podSelector"]), 2);
    assert_eq!(selects(&named("NetworkPolicy", "folgore-nats")["spec"]["podSelector"]), 1);
    let to = named("NetworkPolicy", "folgore")["spec"]["egress"][0].clone();
    assert_eq!((&to["to"][0]["podSelector"]["matchLabels"], &to["ports"][0]["port"]), (&nats, &json!(4222)));
    let from = named("NetworkPolicy", "folgore-nats")["spec"]["ingress"][0].clone();
    assert_eq!((selects(&from["from"][0]["podSelector"]), &from["ports"][0]["port"]), (2, &json!(4222)));
}

#[test]
fn head_and_workers_are_of_one_run_and_know_their_server() {
    let values = document("kubernetes/nats-values.yaml");
    let (head, worker) = (command("folgore-head"), command("folgore-rollout"));
    assert_eq!(flag(&head, "--run-name"), flag(&worker, "--run"));
    let server = format!("nats://{}:4222", values["fullnameOverride"].as_str().unwrap());
    assert_eq!((flag(&head, "--nats").unwrap(), flag(&worker, "--nats").unwrap()), (server.clone(), server));
    assert!(head.contains(&"--continue".to_owned()), "a pod is started again with the same arguments");
}

/// The autoscaler looks at the queue that the workers of this run pull from, and at an account that exists.
#[test]
fn the_autoscalers_look_at_what_there_is() {
    let run = RunName::new(flag(&command("folgore-head"), "--run-name").unwrap()).unwrap();
    let scaled = named("ScaledObject", "folgore-rollout");
    let asked = &scaled["spec"]["triggers"][0]["metadata"];
    assert_eq!(asked["stream"], json!(Names::new(&run).unwrap().jobs_stream()));
    assert_eq!(asked["consumer"], ROLLOUT_CONSUMER);
    let values = document("kubernetes/nats-values.yaml");
    let account = asked["account"].as_str().unwrap();
    assert!(values["config"]["merge"]["accounts"][account]["jetstream"].is_object(), "{account}");
    let endpoint = asked["natsServerMonitoringEndpoint"].as_str().unwrap();
    let (host, port) = endpoint.split_once(':').unwrap();
    assert!(host.starts_with(&format!("{}.folgore.svc", values["fullnameOverride"].as_str().unwrap())), "{host}");
    assert!(port == "8222" && values["service"]["ports"]["monitor"]["enabled"] == true);
    let hpa = named("HorizontalPodAutoscaler", "folgore-rollout");
    for target in [&scaled["spec"]["scaleTargetRef"], &hpa["spec"]["scaleTargetRef"]] {
        assert_eq!(target["kind"], "StatefulSet");
        named("StatefulSet", target["name"].as_str().unwrap());
    }
    assert_eq!(scaled["spec"]["maxReplicaCount"], hpa["spec"]["maxReplicas"]);
}

/// What `identities.sh` made, with the real executable and a `kubectl` that writes down what it is asked for.
pub struct Secrets {
    /// Keeps the files.
    pub dir: TempDir,
    /// Path of each key, by secret.
    pub made: BTreeMap<String, BTreeMap<String, PathBuf>>,
}

impl Secrets {
    /// For `workers` rollout workers.
    pub fn make(workers: u32) -> Self {
        let dir = folder();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        symlink(env!("CARGO_BIN_EXE_folgore"), bin.join("folgore")).unwrap();
        let kubectl =
            "#!/bin/sh\nif [ \"$1\" = create ]; then printf '%s\\n' \"$@\" >> asked; else cat > /dev/null; fi\n";
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(bin.join("kubectl")).unwrap();
        std::io::Write::write_all(&mut file, kubectl.as_bytes()).unwrap();
        drop(file);
        let mut command = Command::new("bash");
        command.arg(root().join("deploy/kubernetes/identities.sh")).arg(workers.to_string());
        let path = env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", bin.display())).current_dir(dir.path());
        support::run(command).well();
        let mut made = BTreeMap::new();
        let asked = fs::read_to_string(dir.path().join("asked")).unwrap();
        for call in asked.split("create\nsecret\ngeneric\n").skip(1) {
            let mut lines = call.lines();
            let name = lines.next().unwrap().to_owned();
            let keys = lines.filter_map(|line| line.strip_prefix("--from-file=")?.split_once('='));
            let keys = keys.map(|(key, path)| (key.to_owned(), dir.path().join(path)));
            assert!(made.insert(name, keys.collect()).is_none());
        }
        Self { dir, made }
    }
}

#[test]
fn every_pod_gets_its_own_identity_and_no_other() {
    let secrets = Secrets::make(2);
    for (name, keys) in &secrets.made {
        assert!(!keys.is_empty(), "{name}");
        for (key, path) in keys {
            assert!(path.is_file(), "{name}: {key} is {}", path.display());
            assert!(key.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c)), "{name}: {key}");
        }
    }
    let value = |secret: &str, key: &str| fs::read_to_string(&secrets.made[secret][key]).unwrap();
    assert_eq!(value("folgore-head-identity", "role"), "head\n");

    // the pod's first container, as it is, where the pod's folders are those of this test
    let pod = pods().into_iter().find(|(name, _)| name == "folgore-rollout").unwrap().1;
    let first = &pod["spec"]["initContainers"][0];
    let here = secrets.dir.path().join("pod");
    for folder in ["identities", "identity"] {
        fs::create_dir_all(here.join(folder)).unwrap();
    }
    for (key, path) in &secrets.made["folgore-rollout-identities"] {
        fs::copy(path, here.join("identities").join(key)).unwrap();
    }
    let script = strings(&first["args"]).remove(0);
    let script = script.replace("\"/identit", &format!("\"{}/identit", here.display()));
    let start = |pod: &str| {
        let mut command = Command::new(strings(&first["command"])[0].clone());
        command.args(&strings(&first["command"])[1..]).arg(&script).env("POD_NAME", pod);
        support::run(command)
    };
    start("folgore-rollout-1").well();
    let mut given: Vec<String> =
        files(&here.join("identity"), "").iter().map(|p| p.file_name().unwrap().to_string_lossy().into()).collect();
    given.sort();
    assert_eq!(given, ["ca.pem", "cert.pem", "key.pem", "name", "nkey.seed", "role"]);
    assert_eq!(fs::read_to_string(here.join("identity/name")).unwrap(), "folgore-rollout-1\n");
    let ended = start("folgore-rollout-2");
    assert!(!ended.status.success() && ended.stdout.contains("no identity for folgore-rollout-2"), "{ended:?}");
}
