//! What whoever starts and stops the processes relies on: `--continue`, SIGTERM, and exit codes.

use std::path::Path;

use super::{
    Value,
    support::{Running, folder, folgore, is_saving, metrics, run},
    text,
};

/// Steps of a run that is stopped on its way, and yet is over soon.
const STEPS: usize = 12;

fn head(dir: &Path) -> std::process::Command {
    let mut command =
        folgore(["train", "arithmetic", "--run-name", "r", "--continue", "eval.eval_items=4", "num_prompts=2"]);
    command.args(["--max-steps", &STEPS.to_string()]).current_dir(dir);
    command
}

/// A service is started with the same arguments again and again: it begins, goes on after SIGTERM, and is done once.
#[test]
fn a_head_that_is_stopped_goes_on_and_ends_once() {
    let dir = folder();
    let path = dir.path().join("runs/r");
    let mut first = Running::start(head(dir.path()));
    assert!(first.until(|| metrics(&path).len() >= 2 && !is_saving(&path)), "the run was over too soon");
    first.signal("TERM");
    let ended = first.end();
    assert_eq!(ended.status.code(), Some(130), "{ended:?}");
    assert!(ended.stdout.contains("--resume r"), "{}", ended.stdout);
    let done = metrics(&path).len();
    assert!(done < STEPS);

    let second = run(head(dir.path())).well();
    assert!(second.stdout.contains(&format!("resumed from step {done}")), "{}", second.stdout);
    assert_eq!(metrics(&path).len(), STEPS);

    let third = run(head(dir.path())).well();
    assert_eq!(third.stdout.trim(), "run r is done; --resume r with a larger max_steps trains it further");
}

#[test]
fn a_service_has_to_say_which_run_it_is() {
    let dir = folder();
    let mut command = folgore(["train", "arithmetic", "--continue"]);
    command.current_dir(dir.path());
    let said = super::support::refused(command, &["--continue", "--run-name"]);
    assert!(said.contains("run.name"), "{said}");
}

/// Nothing is lost before the actors are there, so a head that still looks for its server is gone at once, by an exit of its
/// own: what is not heeded does not end the first process of a container.
#[test]
fn a_head_that_waits_for_its_server_heeds_sigterm() {
    let dir = folder();
    let mut command = head(dir.path());
    command.args(["--nats", "nats://127.0.0.1:9"]);
    let mut waiting = Running::start(command);
    assert!(waiting.until(|| dir.path().join("runs/r/config.yaml").exists()));
    waiting.signal("TERM");
    assert_eq!(waiting.end().status.code(), Some(130));
}

/// The codes that units and compose files name are those of the executable.
#[test]
fn the_codes_are_those_that_are_waited_for() {
    let value = |unit: &str, key: &str| -> u32 {
        let text = text(&format!("systemd/{unit}"));
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')?.parse().ok()).unwrap()
    };
    assert_eq!(value("folgore-head.service", "SuccessExitStatus"), 130);
    // EX_CONFIG: `tests/distributed.rs` sees it
    assert_eq!(value("folgore-worker@.service", "RestartPreventExitStatus"), 78);
    let compose: Value = super::document("docker/compose.yaml");
    assert_eq!(compose["services"]["head"]["restart"], "on-failure", "a run that is done is not begun again");
}
