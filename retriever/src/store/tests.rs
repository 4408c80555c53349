//! What a store promises.

use std::collections::BTreeMap;

use folgore_protocol::Digest;

use super::*;
use crate::{Document, Kind, chunk::Chunker};

fn document(id: &str, text: &str) -> Document {
    let metadata = BTreeMap::from([("path".to_owned(), format!("docs/{id}"))]);
    Document { id: id.into(), title: id.to_uppercase(), text: text.into(), kind: Kind::Prose, metadata }
}

fn chunker() -> Chunker {
    Chunker::new(ChunkSettings { max_tokens: 16, min_tokens: 0, ..ChunkSettings::default() }).unwrap()
}

fn put(store: &Store, file: &str, documents: &[Document]) -> Applied {
    let mut batch = Batch::default();
    for document in documents {
        batch.put(file, document.clone(), chunker().chunks(document));
    }
    store.apply(batch).unwrap()
}

fn memory() -> Store {
    Store::in_memory("test", chunker().settings()).unwrap()
}

fn texts(store: &Store) -> Vec<(ChunkId, String)> {
    let mut texts = Vec::new();
    store.each_chunk(|chunk| texts.push((chunk.id, chunk.text))).unwrap();
    texts
}

use crate::ChunkId;

const LONG: &str = "One two three four five six seven eight nine. Ten eleven twelve thirteen fourteen fifteen.";

#[test]
fn documents_come_change_and_go_and_numbers_are_not_given_again() {
    let store = memory();
    let applied = put(&store, "f", &[document("a", LONG), document("b", "Short.")]);
    assert_eq!((applied.added, applied.new_chunks), (2, vec![0, 1, 2]));
    let again = put(&store, "f", &[document("a", LONG), document("b", "Other.")]);
    assert_eq!((again.unchanged, again.changed), (1, 1));
    assert_eq!((again.new_chunks, again.old_chunks), (vec![3], vec![2]));
    assert_eq!(store.remove("a").unwrap(), Some(vec![0, 1]));
    assert_eq!(store.remove("a").unwrap(), None);
    assert_eq!(texts(&store), [(3, "Other.".to_owned())]);
    store.clear().unwrap();
    assert_eq!(store.counts().unwrap(), Counts::default());
    assert_eq!(put(&store, "f", &[document("c", "New.")]).new_chunks, [4]);
    let chunk = store.chunk(4).unwrap().unwrap();
    assert_eq!((chunk.title.as_str(), chunk.ranked().as_str(), chunk.place), ("C", "C\nNew.", (0, 1)));
    assert_eq!(store.chunk(3).unwrap(), None);
}

#[test]
fn the_digest_knows_documents_and_settings_and_no_order() {
    let documents = [document("a", "A."), document("b", "B."), document("c", "C.")];
    let (forth, back) = (memory(), memory());
    put(&forth, "f", &documents);
    for document in documents.iter().rev() {
        put(&back, "f", std::slice::from_ref(document));
    }
    let digest = forth.digest().unwrap();
    assert_eq!(back.digest().unwrap(), digest);
    put(&back, "f", &[document("d", "D.")]);
    assert_ne!(back.digest().unwrap(), digest);
    back.remove("d").unwrap();
    assert_eq!(back.digest().unwrap(), digest);
    let retitled = Document { title: "Other".into(), ..document("a", "A.") };
    put(&back, "f", &[retitled]);
    assert_ne!(back.digest().unwrap(), digest);
    let other = Store::in_memory("test", &ChunkSettings::default()).unwrap();
    put(&other, "f", &documents);
    assert_ne!(other.digest().unwrap(), digest, "cut by other settings");
}

#[test]
fn an_id_belongs_to_the_file_that_had_it_first() {
    let store = memory();
    put(&store, "one", &[document("a", "First.")]);
    let applied = put(&store, "two", &[document("a", "Second."), document("b", "B.")]);
    assert_eq!((applied.taken, applied.added), (vec![("a".to_owned(), "one".to_owned())], 1));
    assert_eq!(texts(&store)[0].1, "First.");
    assert_eq!(store.remove_file("two", None).unwrap(), 1);
    assert_eq!(texts(&store).len(), 1, "what the other file had is left");
}

#[test]
fn files_go_with_their_documents_or_keep_some() {
    let store = memory();
    let many: Vec<Document> = (0..5000).map(|n| document(&format!("d{n:04}"), "Text.")).collect();
    put(&store, "many", &many);
    let row = FileRow { stamp: None, digest: [1; 32], notes: vec!["noted".into()], taken: true };
    let mut batch = Batch::default();
    batch.file("many", row.clone());
    store.apply(batch).unwrap();
    let mut kept = Ids::default();
    many.iter().step_by(2).for_each(|document| assert!(kept.insert(&document.id)));
    assert_eq!(store.remove_file("many", Some(&kept)).unwrap(), 2500);
    assert_eq!(store.file("many").unwrap(), Some(row));
    assert_eq!(store.remove_file("many", None).unwrap(), 2500);
    assert_eq!((store.counts().unwrap(), store.file("many").unwrap()), (Counts::default(), None));
}

#[test]
fn files_below_a_folder_are_told_from_those_beside_it() {
    let store = memory();
    let row = FileRow { stamp: None, digest: [0; 32], notes: Vec::new(), taken: false };
    let mut batch = Batch::default();
    ["a", "a-b", "a/c", "a/d", "ab", "b"].iter().for_each(|path| batch.file(path, row.clone()));
    store.apply(batch).unwrap();
    assert_eq!(store.files_below("a", |path| path != "a/d").unwrap(), ["a", "a/c"]);
}

#[test]
fn filters_take_values_and_beginnings() {
    let store = memory();
    put(&store, "f", &[document("x/1", LONG), document("y/2", "Y."), document("x/3", "X.")]);
    let holding = |asked: &str| {
        let set = store.matching(&Filter::default().with(asked).unwrap()).unwrap();
        (0..9).filter(|id| set.holds(*id)).collect::<Vec<_>>()
    };
    assert_eq!(holding("path=docs/x/*"), [0, 1, 3]);
    assert_eq!(holding("path=docs/y/2"), [2]);
    assert_eq!(holding("path=docs"), [0; 0]);
    assert_eq!(holding("color=*"), [0; 0]);
    assert!(Filter::default().with("path").unwrap_err().contains("expected key=value"));
}

#[test]
fn vectors_belong_to_chunks_and_to_one_encoder() {
    let store = memory();
    put(&store, "f", &[document("a", "A."), document("b", "B.")]);
    let kept = || {
        let mut kept = Vec::new();
        store.each_vector(|id, vector| kept.push((id, vector.to_vec()))).unwrap();
        kept
    };
    let row = |name: &str, dim| EncoderRow { name: name.into(), digest: Digest::of(name.as_bytes()), dim };
    let (one, two) = (row("one", 2), row("two", 1));
    let both = [(0, vec![1.0, -0.5]), (1, vec![0.0, 2.0]), (7, vec![9.0, 9.0])];
    assert!(store.keep_vectors(&one, &both).unwrap_err().to_string().contains("another encoder"));
    store.set_encoder(Some(&one)).unwrap();
    let lacking = |from| store.without_vector(from, 9).unwrap().into_iter().map(|c| c.id).collect::<Vec<_>>();
    assert_eq!((lacking(0), lacking(1), store.vectors().unwrap()), (vec![0, 1], vec![1], 0));
    store.keep_vectors(&one, &both).unwrap();
    assert_eq!(kept(), both[..2], "7 is no chunk");
    assert_eq!((lacking(0), store.vectors().unwrap()), (vec![], 2));
    store.remove("a").unwrap();
    assert_eq!(kept(), both[1..2]);
    // under another name it is the same encoder
    let renamed = EncoderRow { name: "uno".into(), ..one.clone() };
    store.set_encoder(Some(&renamed)).unwrap();
    assert_eq!((kept(), store.encoder().unwrap()), (both[1..2].to_vec(), Some(renamed)));
    store.set_encoder(Some(&two)).unwrap();
    assert_eq!((kept(), lacking(0)), (vec![], vec![1]));
    assert!(store.keep_vectors(&two, &[(1, vec![f32::NAN])]).unwrap_err().to_string().contains("not finite"));
    assert!(store.keep_vectors(&two, &[(1, vec![1.0, 2.0])]).unwrap_err().to_string().contains("expected 1"));
    store.keep_vectors(&two, &[(1, vec![3.0])]).unwrap();
    store.set_encoder(None).unwrap();
    assert_eq!((store.vectors().unwrap(), store.encoder().unwrap()), (0, None));
}

#[test]
fn a_store_is_found_again_shared_among_readers_and_emptied_for_other_settings() {
    let folder = tempfile::tempdir().unwrap();
    let settings = chunker().settings().clone();
    assert!(matches!(Store::read(folder.path()), Err(StoreError::Missing(_))));
    let store = Store::open(folder.path(), &settings).unwrap();
    put(&store, "f", &[document("a", "A.")]);
    let digest = store.digest().unwrap();
    assert!(matches!(Store::read(folder.path()), Err(StoreError::Locked(_))));
    drop(store);
    let (one, two) = (Store::read(folder.path()).unwrap(), Store::read(folder.path()).unwrap());
    assert_eq!((one.digest().unwrap(), two.settings()), (digest, &settings));
    assert!(one.remove("a").is_err(), "opened for reading");
    drop((one, two));
    let other = Store::open(folder.path(), &ChunkSettings::default()).unwrap();
    assert_eq!(other.counts().unwrap(), Counts::default());
    assert_eq!(put(&other, "f", &[document("a", "A.")]).new_chunks, [1]);
}

#[test]
fn damage_is_an_error_with_a_name() {
    let folder = tempfile::tempdir().unwrap();
    drop(Store::open(folder.path(), chunker().settings()).unwrap());
    let path = folder.path().join(FILE_NAME);
    let whole = std::fs::read(&path).unwrap();
    for cut in [0, 1, 100, 5000, whole.len() / 2] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let error = Store::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&folder.path().display().to_string()), "{cut}: {error}");
    }
    std::fs::write(&path, vec![7; whole.len()]).unwrap();
    assert!(matches!(Store::read(folder.path()), Err(StoreError::Damaged { .. })));
}

#[test]
fn rows_of_another_version_are_named() {
    let mut row = rows::encode(&1u32).unwrap();
    assert_eq!(rows::decode::<u32>(&row), Ok(1));
    row[0] = 9;
    assert_eq!(rows::decode::<u32>(&row).unwrap_err().to_string(), "written in form 9, this program reads form 1");
    assert!(rows::decode::<u32>(&[]).is_err());
    assert!(rows::decode::<String>(&rows::encode(&1u32).unwrap()).is_err());
}
