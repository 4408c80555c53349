//! Files as users have them: read, split, counted, and refused by name.

use std::collections::BTreeSet;

use folgore_config::{
    DataSection,
    data::{DataFormat, OnBadRow},
};
use folgore_dataset::{Dataset, DatasetError, Tasks, load};

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

    fn section(&self, name: &str, body: impl AsRef<[u8]>) -> DataSection {
        DataSection { dataset: self.write(name, body), ..DataSection::default() }
    }
}

fn prompts(tasks: &Tasks) -> BTreeSet<String> {
    (0..tasks.len()).map(|i| tasks.task(i).prompt.last_text().to_owned()).collect()
}

fn lines(range: std::ops::Range<u32>) -> String {
    range.map(|i| format!("{{\"prompt\": \"{i}+{i}=\", \"answer\": {}}}\n", 2 * i)).collect()
}

fn refused(section: &DataSection) -> String {
    match load(section) {
        Ok(dataset) => panic!("taken: {}", dataset.report),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_file_is_divided_and_named_by_its_digest() {
    let folder = Folder::new();
    let section = folder.section("sums.jsonl", lines(0..500));
    let dataset = load(&section).unwrap();
    assert_eq!(dataset.train.len() + dataset.eval.len(), 500);
    assert!((25..85).contains(&dataset.eval.len()), "{}", dataset.eval.len());
    assert!(prompts(&dataset.train).is_disjoint(&prompts(&dataset.eval)));
    assert!((0..dataset.train.len()).map(|i| dataset.train.task(i)).all(|task| {
        let n: u32 = task.prompt.last_text().split('+').next().unwrap().parse().unwrap();
        task.columns["answer"] == 2 * n
    }));
    assert!(dataset.report.to_string().contains("format prompt: `prompt`; every other field goes to the rewards"));

    assert_eq!(load(&section).unwrap().digest, dataset.digest);
    let other = folder.section("sums.jsonl", lines(0..501));
    assert_ne!(load(&other).unwrap().digest, dataset.digest);
    let first = DataSection { max_rows: Some(10), ..other };
    let Dataset { train, eval, .. } = load(&first).unwrap();
    assert_eq!(train.len() + eval.len(), 10);
}

#[test]
fn an_array_reads_like_lines() {
    let folder = Folder::new();
    let as_lines = folder.section("rows.jsonl", lines(0..50));
    let array = format!("[{}]", lines(0..50).trim_end().replace('\n', ",\n"));
    let as_array = folder.section("rows.json", array);
    assert_eq!(load(&as_lines).unwrap().digest, load(&as_array).unwrap().digest);
}

#[test]
fn a_held_out_file_takes_its_prompts_out_of_training() {
    let folder = Folder::new();
    let mut section = folder.section("train.jsonl", lines(0..20));
    section.eval_dataset = Some(folder.write("eval.jsonl", lines(15..25)).into());
    let dataset = load(&section).unwrap();
    assert_eq!((dataset.train.len(), dataset.eval.len()), (15, 10));
    assert!(prompts(&dataset.train).is_disjoint(&prompts(&dataset.eval)));
    assert!(dataset.report.to_string().contains("5 training rows left out: their prompts are held out"));
    section.eval_dataset = Some(section.dataset.clone().into());
    assert!(refused(&section).contains("no row is left to train on: all of 20 are also in"));
}

#[test]
fn bad_rows_stop_or_are_counted() {
    let folder = Folder::new();
    let mut body = lines(0..3).into_bytes();
    body.extend_from_slice(b"{\"prompt\": null}\n\n{\"prompt\": \"\xff\"}\nnot json\n");
    body.extend_from_slice(lines(3..6).as_bytes());
    let mut section = folder.section("rows.jsonl", body);
    section.eval_fraction = 0.0;
    let error = refused(&section);
    assert!(
        error.ends_with(
            "rows.jsonl: row 4 (line 4), field `prompt`: expected a text or a list of messages, got null; \
             data.on_bad_row=skip leaves such rows out"
        ),
        "{error}"
    );
    section.on_bad_row = OnBadRow::Skip;
    let dataset = load(&section).unwrap();
    assert_eq!(dataset.train.len(), 6);
    let file = &dataset.report.files[0];
    assert_eq!((file.rows, file.skipped, file.first_bad.len()), (9, 3, 3));
    let report = dataset.report.to_string();
    assert!(report.contains("3 of 9 rows are bad and left out:\n    row 4 (line 4), field `prompt`:"), "{report}");
}

#[test]
fn a_file_without_a_usable_row_is_refused() {
    let folder = Folder::new();
    for body in ["", "\n \n", "[]", "\u{feff}"] {
        let error = refused(&folder.section("rows.jsonl", body));
        assert!(
            error.contains("rows.jsonl: expected at least one usable row, got none of 0; fill it"),
            "{body:?}: {error}"
        );
    }
    let mut section = folder.section("rows.jsonl", "nothing\nat all\n");
    assert!(refused(&section).contains("row 1 (line 1): expected one JSON object on the line"));
    section.on_bad_row = OnBadRow::Skip;
    let error = refused(&section);
    assert!(error.contains("got none of 2; row 1 (line 1): expected one JSON object on the line"), "{error}");

    let missing = DataSection { dataset: "arithmetics".into(), ..DataSection::default() };
    let error = refused(&missing);
    assert!(error.contains("arithmetics: cannot be read") && error.contains("countdown"), "{error}");
    assert!(matches!(load(&missing), Err(DatasetError::Read { .. })));

    let all = DataSection { eval_fraction: 0.999_999, ..folder.section("rows.jsonl", lines(0..3)) };
    assert!(refused(&all).contains("lower data.eval_fraction"));
}

#[test]
fn the_format_can_be_overridden() {
    let folder = Folder::new();
    let row = r#"{"prompt": "q", "completion": "c", "messages": [{"role": "user", "content": "m"}]}"#;
    let body = format!("{row}\n").repeat(2);
    let auto = DataSection { eval_fraction: 0.0, ..folder.section("rows.jsonl", body) };
    assert_eq!(load(&auto).unwrap().train.task(0).prompt.last_text(), "m");
    assert_eq!(load(&auto).unwrap().report.files[0].repeated, 1);
    let forced = DataSection { format: DataFormat::PromptCompletion, ..auto };
    let dataset = load(&forced).unwrap();
    assert_eq!(dataset.train.task(0).prompt.last_text(), "q");
    assert!(dataset.report.to_string().contains("format prompt_completion: as data.format says"));
}

#[test]
fn rules_make_both_sides() {
    for dataset in folgore_config::data::PROCEDURAL {
        let made = load(&DataSection { dataset: dataset.into(), ..DataSection::default() }).unwrap();
        assert!(made.eval.len() >= 300 && made.train.len() > 1_000_000, "{dataset}");
        assert_eq!(made.train.task(3), made.train.task(3));
        assert!(made.report.to_string().contains("without end"), "{}", made.report);
    }
    let two = DataSection::default();
    let three = {
        let mut section = two.clone();
        section.arithmetic.digits = 4;
        section
    };
    assert_ne!(load(&two).unwrap().digest, load(&three).unwrap().digest);
}

#[test]
fn a_sum_is_asked_as_the_embedded_policy_was_taught() {
    let made = load(&DataSection::default()).unwrap();
    for i in 0..50 {
        let task = made.train.task(i);
        let text = task.prompt.last_text();
        let (a, b) = text.strip_suffix('=').unwrap().split_once('+').unwrap();
        assert_eq!((a.len(), b.len()), (3, 3));
        let sum = a.parse::<u32>().unwrap() + b.parse::<u32>().unwrap();
        assert_eq!(task.columns["answer"], sum.to_string());
    }
}

#[test]
fn what_is_broken_in_a_folder_is_named_or_left_out_and_told() {
    let folder = Folder::new();
    for (name, body) in
        [("a.jsonl", lines(0..5)), ("b.json", "[{".into()), ("c.jsonl", String::new()), ("d.csv", "x,y\n1,2\n".into())]
    {
        folder.write(name, body);
    }
    let dataset = folder.0.path().display().to_string();
    let mut section = DataSection { dataset, eval_fraction: 0.0, ..DataSection::default() };
    assert!(refused(&section).contains("b.json: expected JSON"));
    section.on_bad_row = OnBadRow::Skip;
    let read = load(&section).unwrap();
    let report = read.report.to_string();
    assert_eq!((read.train.len(), read.report.unreadable.len()), (5, 2), "{report}");
    assert!(
        report.contains("left out whole, 2 files that cannot be read:") && report.contains("c.jsonl (empty)"),
        "{report}"
    );
    assert!(report.contains("d.csv: no known shape of row"), "{report}");
}

#[test]
fn text_in_another_coding_and_archives_are_named() {
    let folder = Folder::new();
    let utf16: Vec<u8> =
        [0xfeff].into_iter().chain("{\"prompt\": 1}".encode_utf16()).flat_map(u16::to_le_bytes).collect();
    assert!(refused(&folder.section("rows.jsonl", utf16)).contains("it is text in UTF-16: save it in UTF-8"));
    assert!(refused(&folder.section("rows.csv", b"PK\x03\x04...")).contains("a spreadsheet"));
}
