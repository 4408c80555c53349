//! Several sources in exact proportions, passages in front of questions, and rows that nobody would write by hand.

use std::path::PathBuf;

use folgore_config::{
    DataSection,
    data::{DataFormat, DataSource, Formatter, OnBadRow},
};
use folgore_dataset::{examples, load};
use folgore_protocol::{Body, Prompt};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, body: impl AsRef<[u8]>) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, body).unwrap();
        path.display().to_string()
    }
}

fn sums(n: u32) -> String {
    (0..n).map(|i| format!("{{\"prompt\": \"{i}+{i}=\", \"completion\": \"{}\"}}\n", 2 * i)).collect()
}

fn chats(n: u32) -> String {
    let row = |i| {
        format!(
            "{{\"conversations\": [{{\"from\": \"human\", \"value\": \"hi {i}\"}}, {{\"from\": \"gpt\", \"value\": \"ho\"}}]}}\n"
        )
    };
    (0..n).map(row).collect()
}

fn mixed(folder: &Folder) -> DataSection {
    let source = |path: String, weight, name: &str| DataSource {
        path,
        weight: Some(weight),
        name: Some(name.into()),
        ..DataSource::default()
    };
    let sums = source(folder.write("sums.jsonl", sums(200)), 0.75, "sums");
    let chats = source(folder.write("chats.jsonl", chats(40)), 0.25, "chats");
    DataSection { sources: vec![sums, chats], ..DataSection::default() }
}

#[test]
fn sources_are_mixed_by_weight_and_named_in_every_row() {
    let folder = Folder::new();
    let section = mixed(&folder);
    let read = examples(&section).unwrap();
    assert_eq!(read.train.len() + read.eval.len() as u64, 240);
    for end in [1u64, 4, 7, 100, 1001] {
        let chats = (0..end).filter(|i| read.train.drawn(3, *i).source == "chats").count() as f64;
        assert!((chats - end as f64 / 4.0).abs() < 1.0, "{chats} of {end}");
    }
    for i in 0..100 {
        let row = read.train.get(i);
        assert_eq!(row.source, read.train.sources()[read.train.source_of(i)].name);
        assert!(row.id.starts_with(&format!("{}/", row.source)), "{}", row.id);
    }
    assert!(read.eval.iter().any(|row| row.source == "chats") && read.eval.iter().any(|row| row.source == "sums"));
    let report = read.report.to_string();
    assert!(report.contains("chats: ") && report.contains("25.00 % of the mix"), "{report}");
    let asked = load(&section).unwrap();
    assert_eq!(asked.train.len(), read.train.len());
    assert_eq!(asked.train.task(0).columns["data_source"], read.train.get(0).source);
    assert_eq!(asked.train.task(5).prompt.last_text(), load(&section).unwrap().train.task(5).prompt.last_text());

    let mut other = section.clone();
    other.sources[0].weight = Some(0.5);
    assert_ne!(examples(&other).unwrap().digest, read.digest, "another mix is another dataset");
    assert_eq!(examples(&section).unwrap().digest, read.digest);
}

#[test]
fn a_source_has_its_own_limit_format_and_formatter() {
    let folder = Folder::new();
    let mut section = mixed(&folder);
    section.eval_fraction = 0.0;
    section.sources[0].max_samples = Some(30);
    section.sources[0].formatter = Some(Formatter::Chat);
    section.sources[1].format = DataFormat::Sharegpt;
    section.sources[1].formatter = Some(Formatter::Instruction);
    let read = examples(&section).unwrap();
    assert_eq!(read.train.sources().iter().map(|source| source.rows.len()).collect::<Vec<_>>(), [30, 40]);
    assert!(matches!(read.train.sources()[0].rows[0].body, Body::Conversation { .. }));
    let Body::Completion { prompt, completion } = &read.train.sources()[1].rows[0].body else { panic!() };
    assert!(prompt.contains("### Instruction:\nhi 0\n") && completion == "ho", "{prompt}");

    section.sources[1].formatter = Some(Formatter::FunctionCalling);
    let error = examples(&section).unwrap_err().to_string();
    assert!(error.contains("chats.jsonl") && error.contains("neither tools nor calls"), "{error}");
    section.sources[1].formatter = None;
    section.sources[1].weight = Some(1e-12);
    assert!(
        examples(&section).unwrap_err().to_string().starts_with("data.sources: expected weights whose proportions")
    );
}

#[test]
fn a_share_of_the_questions_is_asked_over_passages() {
    let folder = Folder::new();
    let row =
        |i: u32| format!("{{\"prompt\": \"where is {i}?\", \"answer\": \"{i}\", \"context\": \"it is at {i}\"}}\n");
    let path = folder.write("asked.jsonl", (0..400).map(row).collect::<String>());
    let section =
        DataSection { dataset: path, rag_share: 0.25, rag_passages: 2, eval_fraction: 0.0, ..DataSection::default() };
    let read = load(&section).unwrap();
    let mut over = 0;
    for i in 0..read.train.len() {
        let task = read.train.task(i);
        let text = task.prompt.last_text();
        let Some(relevant) = task.columns.get("rag_relevant") else {
            assert!(text.starts_with("where is "), "{text}");
            continue;
        };
        over += 1;
        let answer = task.columns["answer"].as_str().unwrap();
        let own = relevant[0].as_u64().unwrap();
        assert!(text.contains(&format!("[{own}] it is at {answer}\n")), "{text}");
        assert!(
            text.starts_with("Passages:\n[1] ") && text.ends_with(&format!("\n\nQuestion: where is {answer}?")),
            "{text}"
        );
        assert_eq!(text.matches("it is at ").count(), 3, "{text}");
    }
    assert!((70..130).contains(&over), "{over}");
    assert_eq!(load(&section).unwrap().digest, read.digest);
    assert!(read.report.to_string().contains(&format!("{over} of 400 questions are asked over passages")));
    let bare = DataSection { dataset: folder.write("bare.jsonl", sums(9)), ..section.clone() };
    assert!(load(&bare).unwrap_err().to_string().starts_with("data.rag_share: expected passages"));
    let corpus = folder.write("corpus.jsonl", "{\"id\": \"1\", \"contents\": \"all of it\"}\n");
    let bare = DataSection { rag_corpus: Some(PathBuf::from(corpus)), rag_share: 1.0, ..bare };
    assert!(load(&bare).unwrap().train.task(0).prompt.last_text().contains("[1] all of it"));
}

#[test]
fn texts_of_every_kind_pass_unchanged_through_every_layout() {
    let folder = Folder::new();
    let texts = [
        " ",
        "\u{0}",
        "👩‍👩‍👧",
        "\u{202e}אב",
        "e\u{301}",
        "<|im_end|>\n<|im_start|>system",
        "</information><answer>",
        "a\r\nb",
        "\"",
        "＜answer＞",
    ];
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let csv: String = texts.iter().map(|text| format!("{},x\r\n", quoted(text))).collect();
    let jsonl: String =
        texts.iter().map(|text| format!("{}\r\n", serde_json::json!({"prompt": text, "completion": "x"}))).collect();
    for (name, body) in
        [("odd.csv", format!("\u{feff}prompt,completion\r\n{csv}")), ("odd.jsonl", format!("\u{feff}{jsonl}"))]
    {
        let section = DataSection { dataset: folder.write(name, body), eval_fraction: 0.0, ..DataSection::default() };
        let (asked, said) = (load(&section).unwrap(), examples(&section).unwrap());
        for (i, text) in texts.iter().enumerate() {
            assert_eq!(asked.train.task(i as u64).prompt, Prompt::Text((*text).into()), "{name}");
            let Body::Completion { prompt, .. } = &said.train.get(i as u64).body else { panic!() };
            assert_eq!(prompt, text, "{name}");
        }
    }
    let bad = "prompt,completion\n,x\na,b\n";
    let mut section = DataSection { dataset: folder.write("bad.csv", bad), ..DataSection::default() };
    let error = examples(&section).unwrap_err().to_string();
    assert!(error.ends_with("bad.csv: row 1 (line 2), field `prompt`: expected a text or a list of messages, got an empty text; data.on_bad_row=skip leaves such rows out"), "{error}");
    section.on_bad_row = OnBadRow::Skip;
    assert_eq!(examples(&section).unwrap().train.len(), 1);
}

#[test]
fn a_folder_is_read_file_by_file_and_its_splits_are_told_apart() {
    let folder = Folder::new();
    std::fs::create_dir(folder.0.path().join("data")).unwrap();
    folder.write("data/train-00000.jsonl", sums(20));
    folder.write("data/train-00001.csv", "prompt,completion\n7+8=,15\n");
    folder.write("data/test-00000.jsonl", sums(5));
    folder.write("README.md", "words");
    let path = folder.0.path().display().to_string();
    let section = DataSection { dataset: path.clone(), eval_dataset: Some(path.into()), ..DataSection::default() };
    let read = examples(&section).unwrap();
    assert_eq!((read.train.len(), read.eval.len()), (16, 5), "five of the training rows are in the test split");
    assert_eq!(read.train.rows().last().unwrap().id, "data/train-00001.csv:1");
    let report = read.report.to_string();
    assert!(
        report.contains("README.md (no rows, by its name)") && report.contains("test-00000.jsonl (of another split)"),
        "{report}"
    );

    let empty = DataSection { dataset: Folder::new().0.path().display().to_string(), ..DataSection::default() };
    assert!(load(&empty).is_err());
    let hub = DataSection { dataset: "openai/gsm8k".into(), ..DataSection::default() };
    let error = load(&hub).unwrap_err().to_string();
    assert!(
        error.contains("no place where names on the hub are taken")
            && error.contains("--repo-type dataset openai/gsm8k"),
        "{error}"
    );
}
