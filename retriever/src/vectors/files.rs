//! Vectors in files.
//!
//! `vectors.bin` is the record: a head in JSON (one line), chunks, marks and numbers in little-endian, and the SHA-256 of all that. It
//! is written aside, synced and renamed. Where there is a graph, the head names its two files with their SHA-256; they are written
//! before it under a name that no other record has, so that a crash leaves the old record with the old graph.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::{GraphSettings, VectorsError, graph::Graph, rows::Rows};

const RECORD: &str = "vectors.bin";
const VERSION: u32 = 1;
/// Bytes of a SHA-256.
const SUM: usize = 32;
/// What the library adds to a graph's name.
const ENDINGS: [&str; 2] = ["hnsw.graph", "hnsw.data"];

#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
    dim: usize,
    slots: usize,
    graph: Option<GraphFiles>,
}

#[derive(Serialize, Deserialize)]
struct GraphFiles {
    name: String,
    settings: GraphSettings,
    /// SHA-256 of both, in hexadecimal.
    sums: [String; 2],
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> VectorsError + '_ {
    move |source| VectorsError::Io { path: path.to_owned(), source }
}

fn damaged(path: &Path, what: impl Into<String>) -> VectorsError {
    VectorsError::Damaged { path: path.to_owned(), what: what.into() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sum_of_file(path: &Path) -> std::io::Result<String> {
    let (mut file, mut sum, mut piece) = (File::open(path)?, Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hex(&sum.finalize())),
            count => sum.update(&piece[..count]),
        }
    }
}

fn graph_files(folder: &Path, name: &str) -> [PathBuf; 2] {
    ENDINGS.map(|ending| folder.join(format!("{name}.{ending}")))
}

pub(super) fn write(
    folder: &Path,
    rows: &Rows,
    graph: Option<&Graph>,
    settings: GraphSettings,
) -> Result<(), VectorsError> {
    fs::create_dir_all(folder).map_err(io(folder))?;
    let body = body(rows);
    let graph = graph.map(|graph| write_graph(folder, graph, settings)).transpose()?;
    let keep = graph.as_ref().map(|graph| graph.name.clone());
    let head = Head { version: VERSION, dim: rows.dim(), slots: rows.slots(), graph };
    let path = folder.join(RECORD);
    let mut head = serde_json::to_vec(&head).map_err(|e| damaged(&path, e.to_string()))?;
    head.push(b'\n');
    let sum = Sha256::new().chain_update(&head).chain_update(&body).finalize();
    let aside = tempfile::NamedTempFile::new_in(folder).map_err(io(folder))?;
    let written = [&head[..], &body, &sum].into_iter().try_for_each(|part| aside.as_file().write_all(part));
    written.and_then(|()| aside.as_file().sync_all()).map_err(io(aside.path()))?;
    aside.persist(&path).map_err(|e| VectorsError::Io { path: path.clone(), source: e.error })?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io(folder))?;
    remove_others(folder, keep.as_deref());
    Ok(())
}

fn body(rows: &Rows) -> Vec<u8> {
    let mut body = Vec::with_capacity(rows.slots() * (5 + 4 * rows.dim()));
    body.extend(rows.chunks().iter().flat_map(|chunk| chunk.to_le_bytes()));
    body.extend(rows.live().iter().map(|&live| u8::from(live)));
    body.extend((0..rows.slots()).flat_map(|slot| rows.row(slot)).flat_map(f32::to_le_bytes));
    body
}

fn write_graph(folder: &Path, graph: &Graph, settings: GraphSettings) -> Result<GraphFiles, VectorsError> {
    let taken = |name: &str| graph_files(folder, name).iter().any(|path| path.exists());
    let name = (0..).map(|n| format!("graph-{n}")).find(|name| !taken(name)).unwrap_or_default();
    graph.save(folder, &name).map_err(|what| damaged(&folder.join(&name), what))?;
    let mut sums = [String::new(), String::new()];
    for (path, sum) in graph_files(folder, &name).iter().zip(&mut sums) {
        File::open(path).and_then(|file| file.sync_all()).map_err(io(path))?;
        *sum = sum_of_file(path).map_err(io(path))?;
    }
    Ok(GraphFiles { name, settings, sums })
}

/// Removes graphs that the record does not name. What cannot be removed is only in the way.
fn remove_others(folder: &Path, keep: Option<&str>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let graph = ENDINGS.iter().find_map(|ending| name.strip_suffix(ending)?.strip_suffix('.'));
        if graph.is_some_and(|graph| graph.starts_with("graph-") && Some(graph) != keep) {
            let _ = fs::remove_file(&path);
        }
    }
}

pub(super) fn read(folder: &Path, settings: GraphSettings) -> Result<(Rows, Option<Graph>), VectorsError> {
    let path = folder.join(RECORD);
    let bytes = fs::read(&path).map_err(io(&path))?;
    let (content, sum) = bytes.split_last_chunk::<SUM>().ok_or_else(|| damaged(&path, "too short"))?;
    if Sha256::digest(content)[..] != sum[..] {
        return Err(damaged(&path, "its SHA-256 is another than it says"));
    }
    let end = content.iter().position(|&byte| byte == b'\n').ok_or_else(|| damaged(&path, "no head"))?;
    let head: Head = serde_json::from_slice(&content[..end]).map_err(|e| damaged(&path, e.to_string()))?;
    if head.version != VERSION {
        return Err(damaged(&path, format!("version {}, expected {VERSION}", head.version)));
    }
    let rows = rows(&head, &content[end + 1..]).ok_or_else(|| damaged(&path, "its parts do not fit together"))?;
    let graph = head.graph.and_then(|files| match read_graph(folder, &files, &rows, settings) {
        Ok(graph) => Some(graph),
        Err(why) => {
            warn!(graph = files.name, why, "the graph of the vectors is built again");
            None
        }
    });
    Ok((rows, graph))
}

fn rows(head: &Head, body: &[u8]) -> Option<Rows> {
    let (chunks, rest) = body.split_at_checked(head.slots.checked_mul(4)?)?;
    let (live, data) = rest.split_at_checked(head.slots)?;
    let (chunks, data) = (chunks.as_chunks::<4>().0, data.as_chunks::<4>());
    if !data.1.is_empty() || live.iter().any(|&mark| mark > 1) {
        return None;
    }
    let numbers = data.0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    let chunks = chunks.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    Rows::from_parts(head.dim, numbers, chunks, live.iter().map(|&mark| mark == 1).collect())
}

fn read_graph(folder: &Path, files: &GraphFiles, rows: &Rows, settings: GraphSettings) -> Result<Graph, String> {
    let built = |settings: GraphSettings| (settings.neighbours, settings.ef_construction);
    if built(files.settings) != built(settings) {
        return Err("it was built with other settings".into());
    }
    for (path, sum) in graph_files(folder, &files.name).iter().zip(&files.sums) {
        if sum_of_file(path).map_err(|e| format!("{}: {e}", path.display()))? != *sum {
            return Err(format!("{}: not as it was written", path.display()));
        }
    }
    let mut graph = Graph::load(folder, &files.name, settings)?;
    graph.sums = Some(files.sums.clone());
    if graph.slots() == rows.slots() {
        Ok(graph)
    } else {
        Err(format!("{} slots, expected {}", graph.slots(), rows.slots()))
    }
}
