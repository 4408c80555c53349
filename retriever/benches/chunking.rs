//! Bytes of text that are cut into chunks a second, by one thread, with the counter that needs no tokenizer.
//! `cargo bench -p folgore-retriever --bench chunking`

use std::{collections::BTreeMap, hint::black_box, path::Path};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use folgore_retriever::{Document, Kind, Language, chunk::Chunker};

/// Text of the repository, again and again up to about a megabyte.
fn text(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    let one = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    one.repeat((1_000_000 / one.len()).max(1))
}

fn chunking(c: &mut Criterion) {
    let python = "import os\n\n\nclass Stack:\n    \"\"\"Keeps things.\"\"\"\n\n    def push(self, item):\n        self.items.append(item)\n        return len(self.items)\n\n\n";
    let cases = [
        ("prose", Kind::Prose, text("ARCHITECTURE.md")),
        ("markdown", Kind::Markdown, text("README.md")),
        ("rust", Kind::Code(Language::Rust), text("retriever/src/chunk/code.rs")),
        ("python", Kind::Code(Language::Python), python.repeat(6000)),
        ("passages", Kind::Passage, text("README.md")),
    ];
    let chunker = Chunker::default();
    let mut group = c.benchmark_group("chunking");
    group.sample_size(20);
    for (name, kind, text) in cases {
        let document = Document { id: "d".into(), title: String::new(), text, kind, metadata: BTreeMap::new() };
        group.throughput(Throughput::Bytes(document.text.len() as u64));
        group.bench_function(name, |b| b.iter(|| black_box(chunker.chunks(black_box(&document)))));
    }
    group.finish();
}

criterion_group!(benches, chunking);
criterion_main!(benches);
