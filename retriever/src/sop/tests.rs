//! Reading, finding and telling, by examples; the budget by chance.

use proptest::prelude::*;

use super::{read::text_of, *};

/// One procedure.
fn one(name: &str, triggers: &[&str], steps: &[(&str, &str)]) -> Procedure {
    let step = |(action, expect): &(&str, &str)| Step { action: (*action).into(), expect: (*expect).into() };
    Procedure {
        name: name.into(),
        category: "tests".into(),
        status: Status::Active,
        when: String::new(),
        triggers: triggers.iter().map(|t| (*t).to_owned()).collect(),
        steps: steps.iter().map(step).collect(),
    }
}

/// Names of what is found.
fn names(memory: &Procedures, question: &str, most: usize) -> Vec<String> {
    let found = memory.find(question, most, 0.5).unwrap();
    found.into_iter().map(|found| memory.active()[found.at].name.clone()).collect()
}

/// Tokens as words.
fn words(text: &str) -> usize {
    text.split_whitespace().count()
}

#[test]
fn a_file_holds_one_or_many_in_yaml_or_json() {
    let yaml = "name: Water plants\ntriggers: [dry soil]\nsteps:\n  - action: >\n      Fill\n      the can.\n    expect: It is full.\n  - Pour.\n";
    let mut want = one("Water plants", &["dry soil"], &[("Fill the can.", "It is full."), ("Pour.", "")]);
    want.category = String::new();
    assert_eq!(text_of(yaml, "a.yaml").unwrap(), [want.clone()]);
    let json = r#"[{"name": "Water plants", "triggers": ["dry soil"], "status": "retired",
        "steps": [{"action": "Fill the can.", "expect": "It is full."}, "Pour."]}, {"name": "b", "triggers": ["x"], "steps": ["y"]}]"#;
    let read = text_of(json, "a.json").unwrap();
    assert_eq!(read[0], Procedure { status: Status::Retired, ..want });
    assert_eq!(read[1].name, "b");
    // what is written down is read again
    let written = serde_json::to_string(&read).unwrap();
    assert_eq!(text_of(&written, "b.json").unwrap(), read);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let good = "name: n\ntriggers: [t]\nsteps: [s]\n";
    let steps = |steps: &str| format!("name: n\ntriggers: [t]\nsteps: {steps}\n");
    let cases = [
        (String::new(), "p.yaml: expected a procedure (name, triggers, steps) or a list of procedures, got nothing"),
        (
            "- x\n".into(),
            "p.yaml, procedure 1: expected a procedure (name, triggers, steps) or a list of procedures, got a text",
        ),
        ("triggers: [t]\nsteps: [s]\n".into(), "p.yaml: name: expected a text, got no such field"),
        (
            format!("{good}trigger: [u]\n"),
            "p.yaml (\"n\"): trigger: expected one of name, category, status, when, triggers, steps, got an unknown field",
        ),
        (format!("{good}status: live\n"), "p.yaml (\"n\"): status: expected active, draft or retired, got \"live\""),
        (format!("{good}when: 5\n"), "p.yaml (\"n\"): when: expected a text, got a number"),
        ("name: n\nsteps: [s]\n".into(), "p.yaml (\"n\"): triggers: expected a list of 1 to 32, got no such field"),
        (
            "name: n\ntriggers: []\nsteps: [s]\n".into(),
            "p.yaml (\"n\"): triggers: expected a list of 1 to 32, got a list of 0",
        ),
        (
            "name: n\ntriggers: [t, T]\nsteps: [s]\n".into(),
            "triggers[1]: expected another trigger than before, got \"T\" again",
        ),
        (steps("run it"), "p.yaml (\"n\"): steps: expected a list of 1 to 64, got a text"),
        (steps("[{action: a}, {expect: b}]"), "p.yaml (\"n\"): steps[1].action: expected a text, got no such field"),
        (
            steps("[{action: a, expected: b}]"),
            "steps[0].expected: expected one of action, expect, got an unknown field",
        ),
        (steps("['']"), "p.yaml (\"n\"): steps[0]: expected a text, got an empty one"),
        (steps("[\"a\\e[2Jb\"]"), "steps[0]: expected a text without control characters, got U+001B"),
        (steps(&format!("[{}]", "s,".repeat(65))), "steps: expected a list of 1 to 64, got a list of 65"),
        (format!("name: {}\n{good}", "x".repeat(101)), "the key `name` occurs twice"),
        (
            good.replace("name: n", &format!("name: {}", "x".repeat(101))),
            "name: expected at most 100 characters, got 101",
        ),
        ("name: [\n".into(), "p.yaml:"),
    ];
    for (text, want) in cases {
        let error = text_of(&text, "p.yaml").unwrap_err().to_string();
        assert!(error.contains(want), "{text:?}\n{error}");
    }
    let many = text_of("[{\"name\": \"a\", \"triggers\": [\"t\"], \"steps\": [\"s\"]}, {\"name\": \"b\"}]", "p.json");
    let error = many.unwrap_err().to_string();
    assert!(error.starts_with("p.json, procedure 2 (\"b\"): triggers: expected"), "{error}");
    assert!(text_of("{", "p.json").unwrap_err().to_string().starts_with("p.json:1:1: no JSON: "));
}

#[test]
fn folders_are_read_in_the_order_of_names_and_names_are_unique() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let file = |name: &str, procedure: &str| {
        std::fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        std::fs::write(at(name), format!("{{\"name\": \"{procedure}\", \"triggers\": [\"t\"], \"steps\": [\"s\"]}}"))
            .unwrap();
    };
    file("b.json", "from b");
    file("a/deep.yml", "from a");
    file(".hidden.yaml", "hidden");
    file("README.md", "no");
    let read =
        |paths: &[std::path::PathBuf]| read(paths).map(|all| all.into_iter().map(|p| p.name).collect::<Vec<_>>());
    assert_eq!(read(&[folder.path().to_owned()]).unwrap(), ["from a", "from b"]);
    assert_eq!(read(&[at("b.json"), at("a")]).unwrap(), ["from b", "from a"]);
    assert_eq!(read(&["builtin".into(), at("b.json")]).unwrap().len(), builtin().len() + 1);
    file("c.yaml", "FROM B");
    let error = read(&[folder.path().to_owned()]).unwrap_err().to_string();
    assert!(error.starts_with("procedure \"FROM B\" is in ") && error.contains("b.json and in "), "{error}");
    assert!(read(&[at("missing.yaml")]).unwrap_err().to_string().contains("missing.yaml: "));
    std::fs::create_dir(at("none")).unwrap();
    let error = read(&[at("none")]).unwrap_err().to_string();
    assert!(
        error.ends_with("expected at least one procedure, in files that end in .yaml, .yml or .json, got none"),
        "{error}"
    );
    std::fs::write(at("large.yaml"), vec![b' '; (1 << 20) + 1]).unwrap();
    assert!(read(&[at("large.yaml")]).unwrap_err().to_string().contains("expected at most 1048576 bytes"));
    std::fs::write(at("latin.yaml"), b"name: caf\xe9").unwrap();
    assert!(
        read(&[at("latin.yaml")])
            .unwrap_err()
            .to_string()
            .contains("expected UTF-8 text, got another byte at place 10")
    );
    let many: Vec<_> = (0..=MAX_PROCEDURES).map(|i| one(&format!("n{i}"), &["t"], &[("s", "")])).collect();
    std::fs::write(at("many.json"), serde_json::to_string(&many).unwrap()).unwrap();
    assert!(
        read(&[at("many.json")]).unwrap_err().to_string().contains("expected at most 1024 procedures in all, got 1025")
    );
}

#[test]
fn only_active_ones_of_the_categories_are_found() {
    let mut all = vec![
        one("a", &["leaking tap"], &[("s", "")]),
        one("b", &["leaking roof"], &[("s", "")]),
        one("c", &["leaking pipe"], &[("s", "")]),
        one("d", &["leaking tank"], &[("s", "")]),
    ];
    (all[1].status, all[2].status, all[3].category) = (Status::Draft, Status::Retired, "other".into());
    let memory = Procedures::new(all.clone(), &[]).unwrap();
    assert_eq!(names(&memory, "leaking tap, leaking roof, leaking pipe, leaking tank", 9), ["d", "a"]);
    let memory = Procedures::new(all.clone(), &["tests".into()]).unwrap();
    assert_eq!(names(&memory, "leaking tap, leaking roof, leaking pipe, leaking tank", 9), ["a"]);
    let error = Procedures::new(all.clone(), &["test".into()]).err().unwrap().to_string();
    assert!(error.contains("expected some of category \"test\", got only those of \"other\", \"tests\""), "{error}");
    let error = Procedures::new(all[1..3].to_vec(), &[]).err().unwrap().to_string();
    assert!(error.contains("expected at least one that is active, got none among 2"), "{error}");
}

#[test]
fn a_trigger_in_the_question_comes_before_all_and_the_longest_first() {
    let memory = Procedures::new(
        vec![
            one("subscription", &["refund of a subscription"], &[("s", "")]),
            one("refund", &["refund"], &[("s", "")]),
            one("near", &["refunding customers of subscriptions"], &[("refund refund refund", "")]),
        ],
        &[],
    )
    .unwrap();
    assert_eq!(names(&memory, "A refund of a subscription, please", 2), ["subscription", "refund"]);
    assert_eq!(names(&memory, "refund!", 1), ["refund"]);
    let found = memory.find("Refund of a  SUBSCRIPTION", 9, 0.0).unwrap();
    assert_eq!((found[0].score, found[0].trigger.as_deref()), (1.0, Some("refund of a subscription")));
    assert!(found[2].score < 1.0 && found[2].trigger.is_none());
    assert!(names(&memory, "The weather is fine", 9).is_empty());
    assert!(memory.find("refund", 0, 0.0).unwrap().is_empty());
}

#[test]
fn what_is_found_does_not_depend_on_the_order_of_files() {
    let (mut turned, all) = (builtin(), builtin());
    turned.reverse();
    let (a, b) = (Procedures::new(all, &[]).unwrap(), Procedures::new(turned, &[]).unwrap());
    assert_eq!(a.digest(), b.digest());
    for question in ["my test is red", "money", "review the refund of the incident", "a", ""] {
        assert_eq!(a.find(question, 9, 0.0).unwrap(), b.find(question, 9, 0.0).unwrap(), "{question}");
    }
    assert_ne!(a.digest(), Procedures::new(builtin()[1..].to_vec(), &[]).unwrap().digest());
}

#[test]
fn procedures_are_told_whole_then_by_whole_steps() {
    let mut a =
        one("Water plants", &["t"], &[("Fill the can.", "It is full."), ("Pour slowly.", ""), ("Put it back.", "")]);
    a.when = "The soil is dry.".into();
    let b = one("Sweep", &["t"], &[("Fetch a broom.", ""), ("Sweep.", "")]);
    let at = |budget| told(&[&a, &b], budget, words);
    let whole = at(1000);
    assert_eq!(
        whole.text,
        "Follow this procedure: Water plants\nWhen: The soil is dry.\n1. Fill the can.\n   Expected: It is full.\n2. Pour slowly.\n\
         3. Put it back.\n\nFollow this procedure: Sweep\n1. Fetch a broom.\n2. Sweep."
    );
    assert_eq!((whole.procedures, whole.left_out), (2, 0));
    let one_step_less = at(words(&whole.text) - 1);
    assert_eq!((one_step_less.procedures, one_step_less.left_out), (1, 0), "its line takes more than the step");
    assert!(!one_step_less.text.contains("Sweep"));
    let short = told(&[&a, &b], words(&one_step_less.text) - 1, words);
    assert_eq!((short.procedures, short.left_out), (1, 2));
    assert!(short.text.ends_with("It is full.\n(Shortened by 2 steps.)"), "{}", short.text);
    assert_eq!(at(12), Told::default(), "no step fits");
    assert_eq!(told(&[], 100, words), Told::default());
}

proptest! {
    #[test]
    fn what_is_told_never_takes_more_than_its_budget(
        sizes in prop::collection::vec(prop::collection::vec((1usize..9, 0usize..9), 1..7), 0..5),
        budget in 0usize..150,
        // tokens that are not words: some count of letters, with one for each part begun
        letters in 1usize..7,
    ) {
        let text = |words: usize| vec!["word"; words].join(" ");
        let procedures: Vec<Procedure> = sizes
            .iter()
            .enumerate()
            .map(|(i, steps)| {
                let steps: Vec<(String, String)> = steps.iter().map(|(a, e)| (text(*a), text(*e))).collect();
                let steps: Vec<(&str, &str)> = steps.iter().map(|(a, e)| (a.as_str(), e.as_str())).collect();
                one(&format!("n{i}"), &["t"], &steps)
            })
            .collect();
        let procedures: Vec<&Procedure> = procedures.iter().collect();
        let count = |text: &str| text.len().div_ceil(letters);
        let said = told(&procedures, budget, count);
        prop_assert!(count(&said.text) <= budget);
        prop_assert_eq!(said.text.is_empty(), said.procedures == 0);
        // whole procedures, best first, and whole steps
        let all = told(&procedures, usize::MAX, count);
        prop_assert_eq!((all.procedures, all.left_out), (procedures.len(), 0));
        let kept = said.text.split("\n(Shortened").next().unwrap_or_default();
        prop_assert!(all.text.starts_with(kept));
        prop_assert!(kept.is_empty() || matches!(all.text[kept.len()..].chars().next(), None | Some('\n')));
        prop_assert_eq!(said.left_out > 0, said.text.contains("\n(Shortened by "));
    }
}
