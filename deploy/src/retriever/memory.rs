//! The memory that finding passages takes, before anything is loaded.

use std::path::Path;

use anyhow::{Context as _, Result};
use folgore_config::RetrieverSection;
use folgore_model::files::safetensors;
use folgore_retriever::{
    store::{EncoderRow, Store},
    vectors::{self, GraphSettings},
};

use super::{models, ranked_by};
use crate::capacity::Part;

/// Models and vectors that the retriever of `section` holds. Of models only headers are read. What ranks words is left out: it is small
/// beside the texts, which stay in their file.
///
/// # Errors
/// If the index cannot be read, or a model cannot be had.
pub fn memory(section: &RetrieverSection) -> Result<Vec<Part>> {
    let Some(folder) = section.index.as_ref().filter(|_| section.url.is_none() && section.web.is_none()) else {
        return Ok(Vec::new());
    };
    let store = Store::read(folder).with_context(|| format!("retriever.index {}", folder.display()))?;
    let made_by = store.encoder()?;
    let mut parts = Vec::new();
    let mut part = |name: &str, bytes: u64, lower: &str| {
        parts.extend((bytes > 0).then(|| Part { name: name.into(), bytes, lower: lower.into() }));
    };
    if let Some(EncoderRow { name, dim, .. }) =
        made_by.filter(|made_by| ranked_by(section, Some(made_by)).takes_vectors())
    {
        let encoder = models::folder(section.encoder.as_deref().unwrap_or(&name))?;
        part("encoder of the retriever", encoder.map_or(Ok(0), |folder| weights(&folder))?, "retriever.by=words");
        part(
            "vectors of the retriever",
            vectors::held(store.vectors()?, dim, GraphSettings::default()),
            "retriever.by=words",
        );
    }
    if let Some(name) = &section.rerank {
        let reranker = models::folder(name)?;
        part(
            "reranker",
            reranker.map_or(Ok(0), |folder| weights(&folder))?,
            "retriever.rerank (none, or a smaller one)",
        );
    }
    Ok(parts)
}

/// Bytes of a model's weights, which are held in f32.
fn weights(folder: &Path) -> Result<u64> {
    let tensors = safetensors::open(&folder.join("model.safetensors"))?;
    let names = tensors.names();
    let numbers = names.iter().filter_map(|name| tensors.shape(name)).map(|shape| shape.iter().product::<usize>());
    Ok(4 * numbers.sum::<usize>() as u64)
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use folgore_config::RankBy;
    use folgore_retriever::{
        encode::{Encoder, Sentence},
        encoding, indexing,
        read::{ReadLimits, Source},
    };

    use super::*;

    /// What a checkpoint in f32 holds behind its head.
    fn numbers(model: &str) -> u64 {
        let file = fs::read(Path::new(model).join("model.safetensors")).unwrap();
        let head = u64::from_le_bytes(*file.first_chunk().unwrap());
        file.len() as u64 - 8 - head
    }

    #[test]
    fn models_and_vectors_are_counted_where_they_rank() {
        let model = |name: &str| format!("{}/../tests/parity/fixtures/bert-tiny/{name}", env!("CARGO_MANIFEST_DIR"));
        let (place, name) = (tempfile::tempdir().unwrap(), model("sentence-mean"));
        let (docs, index) = (place.path().join("docs"), place.path().join("index"));
        fs::create_dir(&docs).unwrap();
        (0..3).for_each(|i| fs::write(docs.join(format!("{i}.txt")), format!("a text {i}")).unwrap());
        let encoder: Arc<dyn Encoder> = Arc::new(Sentence::open(Path::new(&name)).unwrap());
        let chunker = encoding::chunker(Some(&encoder), None, None).unwrap();
        let store = Store::open(&index, chunker.settings()).unwrap();
        store.set_encoder(Some(&EncoderRow::of(&name, &*encoder))).unwrap();
        let sources = Source::all(&[docs]).unwrap();
        indexing::index(&store, &chunker, &sources, &ReadLimits::default(), &mut |_, _| ()).unwrap();
        encoding::encode(&store, &*encoder, &mut |_, _| ()).unwrap();
        drop(store);

        let held = |by: Option<RankBy>, rerank: Option<String>| {
            let section = RetrieverSection { index: Some(index.clone()), by, rerank, ..RetrieverSection::default() };
            memory(&section).unwrap().into_iter().map(|part| (part.name, part.bytes)).collect::<Vec<_>>()
        };
        let of_vectors = [
            ("encoder of the retriever".to_owned(), numbers(&name)),
            ("vectors of the retriever".to_owned(), 3 * encoder.dim() as u64 * 4),
        ];
        assert_eq!(held(None, None), of_vectors);
        assert_eq!(held(Some(RankBy::Words), None), []);
        let reranker = ("reranker".to_owned(), numbers(&model("cross")));
        assert_eq!(held(Some(RankBy::Words), Some(model("cross"))), [reranker]);
        assert_eq!(memory(&RetrieverSection::default()).unwrap(), []);
    }
}
