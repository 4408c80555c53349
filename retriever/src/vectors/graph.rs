//! The graph of `hnsw_rs` over slots: approximate, but no query looks at more than a few hundred vectors.

use std::{fmt, path::Path};

use hnsw_rs::{
    api::AnnT,
    hnswio::HnswIo,
    prelude::{Distance, Hnsw},
};

use super::{GraphSettings, dot::dot, panels::products_of_rows, rows::Rows};

/// Layers at most: enough for more vectors than a slot number can name.
const LAYERS: usize = 16;
/// Vectors that are copied to be put into the graph together.
const BATCH: usize = 10_000;

/// How far unit vectors are apart.
#[derive(Clone, Copy, Default)]
pub(super) struct Apart;

impl Distance<f32> for Apart {
    fn eval(&self, a: &[f32], b: &[f32]) -> f32 {
        (1.0 - dot(a, b)).max(0.0)
    }
}

pub(super) struct Graph {
    hnsw: Hnsw<'static, f32, Apart>,
    settings: GraphSettings,
    /// SHA-256 of the files that it was read from; nothing is put into such a graph.
    pub(super) sums: Option<[String; 2]>,
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph({} slots)", self.hnsw.get_nb_point())
    }
}

impl Graph {
    /// A graph of all slots of `rows`, which have no gaps, built by all threads.
    pub(super) fn build(rows: &Rows, settings: GraphSettings) -> Self {
        let GraphSettings { neighbours, ef_construction, .. } = settings;
        let hnsw = Hnsw::new(neighbours, rows.slots(), LAYERS, ef_construction, Apart);
        let graph = Self { hnsw, settings, sums: None };
        // The first ones by themselves: threads that all begin at once would find nobody to link to.
        let alone = rows.slots().min(1000);
        (0..alone).for_each(|slot| graph.insert(slot, &rows.row(slot).collect::<Vec<_>>()));
        for first in (alone..rows.slots()).step_by(BATCH) {
            let vectors = (first..rows.slots().min(first + BATCH)).map(|slot| (slot, rows.row(slot).collect()));
            let vectors: Vec<(usize, Vec<f32>)> = vectors.collect();
            let batch: Vec<(&[f32], usize)> = vectors.iter().map(|(slot, vector)| (&vector[..], *slot)).collect();
            graph.hnsw.parallel_insert_slice(&batch);
        }
        graph
    }

    pub(super) fn insert(&self, slot: usize, vector: &[f32]) {
        self.hnsw.insert_slice((vector, slot));
    }

    /// Slots near to `query` and their products with it, at least `count` of them where there are as many, removed ones among them.
    pub(super) fn near(&self, query: &[f32], count: usize) -> Vec<(usize, f32)> {
        let ef = self.settings.ef_search.max(count);
        let found = self.hnsw.search(query, ef, ef);
        let points = self.hnsw.get_point_indexation();
        let vectors = found.iter().map(|near| points.get_point_data(&near.p_id).expect("a point that was found"));
        let products = products_of_rows(query, &vectors.collect::<Vec<_>>().concat());
        found.iter().map(|near| near.d_id).zip(products).collect()
    }

    /// Writes two files, `NAME.hnsw.graph` and `NAME.hnsw.data`.
    pub(super) fn save(&self, folder: &Path, name: &str) -> Result<(), String> {
        let got = self.hnsw.file_dump(folder, name).map_err(|e| e.to_string())?;
        if got == name { Ok(()) } else { Err(format!("written as {got}")) }
    }

    /// Reads what [`Graph::save`] wrote. The files must be known to be whole: the library takes their word for everything.
    pub(super) fn load(folder: &Path, name: &str, settings: GraphSettings) -> Result<Self, String> {
        // The library ties what it reads to its reader, for the sake of mapped files. The reader is two names and a few flags.
        let reader: &'static HnswIo = Box::leak(Box::new(HnswIo::new(folder, name)));
        let hnsw = reader.load_hnsw_with_dist(Apart).map_err(|e| e.to_string())?;
        Ok(Self { hnsw, settings, sums: None })
    }

    pub(super) fn slots(&self) -> usize {
        self.hnsw.get_nb_point()
    }
}
