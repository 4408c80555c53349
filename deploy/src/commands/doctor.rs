//! `folgore doctor`: this machine as the engine sees it, in one block to paste into a question.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{
    embedded, policy,
    stream::quietly,
    summary::{Hardware, hardware::bytes_text},
};

/// Programs that later parts of the system use where they are there.
const PROGRAMS: [(&str, &str); 2] = [("bubblewrap", "bwrap"), ("nats-server", "nats-server")];

/// Runs the command.
pub fn run() -> Result<()> {
    let lines = facts().into_iter().map(|(name, fact)| format!("{name:<14} {fact}\n")).collect::<String>();
    quietly(lines.as_bytes())
}

fn facts() -> Vec<(&'static str, String)> {
    let here = Hardware::gather();
    let unknown = || "unknown".to_owned();
    let memory = |bytes: Option<u64>| bytes.map_or_else(unknown, bytes_text);
    let folder = std::env::current_dir().unwrap_or_else(|_| ".".into());
    let disk = fs4::available_space(&folder)
        .map_or_else(|e| e.to_string(), |bytes| format!("{} free here", bytes_text(bytes)));
    let mut facts = vec![
        (
            "folgore",
            format!(
                "{} ({} build)",
                env!("CARGO_PKG_VERSION"),
                if cfg!(debug_assertions) { "debug" } else { "release" }
            ),
        ),
        ("system", format!("{} {}", here.os, here.arch)),
        ("processor", here.cpu.clone().unwrap_or_else(unknown)),
        ("threads", here.cores.to_string()),
        ("kernels", kernels(&here)),
        ("memory", format!("{} in all, {} free", memory(here.memory_total), memory(here.memory_free))),
        ("disk", disk),
        ("embedded", embedded_policy()),
    ];
    for (name, program) in PROGRAMS {
        let found = on_path(program).map_or_else(|| "not found".to_owned(), |path| path.display().to_string());
        facts.push((name, found));
    }
    facts
}

fn kernels(here: &Hardware) -> String {
    match std::env::var("FOLGORE_ISA") {
        Ok(cap) => format!("{} (FOLGORE_ISA={cap})", here.isa),
        Err(_) => here.isa.clone(),
    }
}

/// Whether the policy inside the executable can be read.
fn embedded_policy() -> String {
    match policy::open(embedded::NAME) {
        Ok(files) => format!("policy {}, {} layers", files.digest.short(), files.config.num_hidden_layers),
        Err(error) => format!("cannot be read: {error:#}"),
    }
}

/// The file that a shell would run.
fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    let Ok(found) = file.metadata() else { return false };
    #[cfg(unix)]
    let runs = std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o111 != 0;
    #[cfg(not(unix))]
    let runs = true;
    found.is_file() && runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_is_one_line() {
        let facts = facts();
        assert!(facts.iter().all(|(_, fact)| !fact.is_empty() && !fact.contains('\n')), "{facts:?}");
        assert!(facts.iter().any(|(name, fact)| *name == "embedded" && fact.contains("layers")), "{facts:?}");
    }

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        assert!(on_path("sh").is_some());
        assert!(on_path("no such program").is_none());
    }
}
