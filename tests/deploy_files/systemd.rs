//! `deploy/systemd/`: what the units refer to, and that none is less careful than the others.

use std::collections::{BTreeMap, BTreeSet};

use super::{files, root, text};

const UNITS: [&str; 3] = ["folgore-head.service", "folgore-worker@.service", "nats-server.service"];

/// The settings of a unit's section `[Service]`, each with its values.
fn service(unit: &str) -> BTreeMap<String, Vec<String>> {
    let text = text(&format!("systemd/{unit}"));
    let section = text.split("[Service]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let mut found = BTreeMap::<String, Vec<String>>::new();
    for line in section.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{unit}: {line:?}"));
        found.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    found
}

#[test]
fn units_are_all_equally_careful() {
    let found: BTreeSet<String> = files(&root().join("deploy/systemd"), ".service")
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(found, UNITS.map(str::to_owned).into());
    for unit in UNITS {
        let service = service(unit);
        let value = |key: &str| service.get(key).unwrap_or_else(|| panic!("{unit}: no {key}")).join(" ");
        for key in [
            "NoNewPrivileges",
            "ProtectHome",
            "PrivateTmp",
            "PrivateDevices",
            "PrivateUsers",
            "ProtectKernelModules",
            "ProtectKernelTunables",
            "ProtectControlGroups",
            "RestrictNamespaces",
            "RestrictSUIDSGID",
            "LockPersonality",
        ] {
            assert_eq!(value(key), "yes", "{unit}: {key}");
        }
        assert_eq!(
            (value("ProtectSystem"), value("CapabilityBoundingSet")),
            ("strict".into(), String::new()),
            "{unit}"
        );
        assert_eq!((value("User"), value("UMask")), ("folgore".into(), "0077".into()), "{unit}");
        assert!(value("SystemCallFilter").starts_with("@system-service"), "{unit}");
        assert!(text(&format!("systemd/{unit}")).contains("\n[Install]\nWantedBy=multi-user.target"), "{unit}");
    }
}

/// With a strict system only the unit's own folders can be written: what the command writes lies in them.
#[test]
fn commands_write_to_folders_of_the_unit_and_use_variables_of_its_file() {
    for unit in UNITS {
        let service = service(unit);
        let command = &service["ExecStart"][0];
        assert_eq!(service["StateDirectory"], ["folgore"], "{unit}");
        for path in command.split_whitespace().filter(|word| word.starts_with('/')) {
            let known = ["/usr/local/bin/", "/etc/folgore/", "/var/lib/folgore/"];
            assert!(known.iter().any(|folder| path.starts_with(folder)), "{unit}: {path}");
        }
        let used: BTreeSet<&str> = command.split("${").skip(1).map(|rest| rest.split('}').next().unwrap()).collect();
        let Some(file) = service.get("EnvironmentFile") else {
            assert!(used.is_empty(), "{unit}: {used:?}");
            continue;
        };
        let name = file[0].strip_prefix("/etc/folgore/").unwrap();
        let set = text(&format!("systemd/{name}"));
        let set: BTreeSet<&str> = set
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| Some(line.split_once('=')?.0))
            .collect();
        assert_eq!(set, used, "{unit}: {name}");
        let cache = &service["Environment"];
        assert!(cache.contains(&"FOLGORE_CACHE=/var/cache/folgore".to_owned()), "{unit}: {cache:?}");
        assert_eq!(service["CacheDirectory"], ["folgore"], "{unit}");
    }
}

/// The page has every unit and every file of variables put where the units look.
#[test]
fn the_page_installs_them() {
    let page = text("README.md");
    for path in files(&root().join("deploy/systemd"), "") {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(page.contains(&format!("deploy/systemd/{name}")), "{name}");
    }
}
