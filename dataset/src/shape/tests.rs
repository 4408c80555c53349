//! Rows of every shape, as questions.

use folgore_config::data::{DataFormat, DataSection};
use folgore_protocol::{Message, Prompt, Task};
use serde_json::{Value, json};

use crate::{make::task, rows::RawRow};

fn make(row: Value, format: DataFormat, section: &DataSection) -> Result<Task, String> {
    let fields = row.as_object().unwrap().clone();
    let row = RawRow { number: 7, line: Some(8), fields };
    let shaped = super::read(row, format, section).map_err(|bad| bad.to_string())?;
    task(
        "rows:7",
        None,
        super::Shaped {
            said: super::introduce(shaped.said, section.prompt_prefix.as_deref(), section.system_prompt.as_deref()),
            ..shaped
        },
    )
    .map_err(str::to_owned)
}

fn plain(row: Value, format: DataFormat) -> Result<Task, String> {
    make(row, format, &DataSection::default())
}

#[test]
fn every_shape_gives_prompt_and_columns() {
    let task = plain(json!({"prompt": "1+1=", "answer": 2, "level": "easy"}), DataFormat::Prompt).unwrap();
    assert_eq!(task.id, "rows:7");
    assert_eq!(task.prompt, Prompt::Text("1+1=".into()));
    assert_eq!(Value::Object(task.columns), json!({"answer": 2, "level": "easy"}));

    let turns = json!([{"role": "user", "content": "hi", "name": "ann"}]);
    let task = plain(json!({"prompt": turns, "completion": "yo"}), DataFormat::PromptCompletion).unwrap();
    assert_eq!(serde_json::to_value(&task.prompt).unwrap(), turns);
    assert_eq!(task.columns["completion"], "yo");

    let turns = json!([
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"}
    ]);
    let task = plain(json!({"messages": turns, "tools": "[]"}), DataFormat::Messages).unwrap();
    assert_eq!(task.prompt, Prompt::Messages(vec![Message::new("system", "s"), Message::new("user", "ab")]));
    assert_eq!(Value::Object(task.columns), json!({"tools": "[]", "completion": "c"}));

    let row = json!({
        "data_source": "gsm8k",
        "prompt": [{"role": "user", "content": "q"}],
        "reward_model": {"style": "rule", "ground_truth": "72"},
        "extra_info": {"index": 3}
    });
    let task = plain(row, DataFormat::Verl).unwrap();
    assert_eq!((&task.columns["ground_truth"], &task.columns["answer"]), (&json!("72"), &json!("72")));
    assert_eq!(task.columns["extra_info"]["index"], 3);
    assert_eq!(task.columns["data_source"], "gsm8k");
}

#[test]
fn rows_of_search_r1_keep_all_their_answers() {
    let row = json!({
        "id": "test_0", "question": "who wrote dune", "golden_answers": ["Frank Herbert", "Herbert"], "data_source": "nq",
        "prompt": [{"role": "user", "content": "Answer ... Question: who wrote dune?\n"}], "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": ["Frank Herbert", "Herbert"]}},
        "extra_info": {"split": "test", "index": 0}
    });
    let task = plain(row.clone(), DataFormat::Verl).unwrap();
    let answers = json!(["Frank Herbert", "Herbert"]);
    assert_eq!(task.columns["answer"], answers);
    assert_eq!((&task.columns["golden_answers"], &task.columns["ground_truth"]["target"]), (&answers, &answers));
    assert_eq!(task.columns["reward_model"], row["reward_model"]);
    let Prompt::Messages(messages) = &task.prompt else { panic!("{:?}", task.prompt) };
    assert!(messages[0].content.ends_with("who wrote dune?\n"), "as it stands");
}

#[test]
fn columns_are_mapped_also_from_inside_a_field() {
    let section = DataSection {
        prompt_column: Some("question".into()),
        answer_column: Some("extra.final".into()),
        system_prompt: Some("be brief".into()),
        ..DataSection::default()
    };
    let task = make(json!({"question": "q", "extra": {"final": 5}}), DataFormat::Prompt, &section).unwrap();
    assert_eq!(task.columns["answer"], 5);
    assert_eq!(task.prompt, Prompt::Messages(vec![Message::new("system", "be brief"), Message::new("user", "q")]));
    let own = json!({"question": [{"role": "system", "content": "mine"}, {"role": "user", "content": "q"}], "extra": {"final": 1}});
    let Prompt::Messages(kept) = make(own, DataFormat::Prompt, &section).unwrap().prompt else { panic!() };
    assert_eq!(kept[0].content, "mine");
}

#[test]
fn examples_go_in_front_of_plain_prompts_only() {
    let section = DataSection { prompt_prefix: Some("1+1=2\n".into()), ..DataSection::default() };
    let prompt = |row| make(row, DataFormat::Prompt, &section).unwrap().prompt;
    assert_eq!(prompt(json!({"prompt": "2+2="})), Prompt::Text("1+1=2\n2+2=".into()));
    let own = prompt(json!({"prompt": [{"role": "user", "content": "q"}]}));
    assert_eq!(own, Prompt::Messages(vec![Message::new("user", "q")]));
}

#[test]
fn a_bad_row_is_named_with_its_field() {
    use DataFormat::{Messages, Prompt as Plain, PromptCompletion, Verl};
    for (row, format, want) in [
        (json!({"text": "x"}), Plain, "field `prompt`: expected a text or a list of messages, got no such field"),
        (json!({"prompt": null}), Plain, "field `prompt`: expected a text or a list of messages, got null"),
        (json!({"prompt": 5}), Plain, "field `prompt`: expected a text or a list of messages, got a number"),
        (json!({"prompt": ""}), Plain, "field `prompt`: expected a text or a list of messages, got an empty text"),
        (json!({"prompt": []}), Plain, "field `prompt`: expected at least one message, got an empty list"),
        (json!({"prompt": ["a"]}), Plain, "field `prompt[0]`: expected a message with role and content, got a text"),
        (json!({"prompt": [{"content": "a"}]}), Plain, "field `prompt[0].role`: expected a word, got no such field"),
        (
            json!({"prompt": [{"role": "user", "content": 5}]}),
            Plain,
            "field `prompt[0].content`: expected a text, got a number",
        ),
        (
            json!({"prompt": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            Plain,
            "field `prompt[0].content[0]`: expected a part with a text, got image_url",
        ),
        (json!({"prompt": "a"}), PromptCompletion, "field `completion`: expected a value, got no such field"),
        (
            json!({"messages": [{"role": "assistant", "content": "a"}]}),
            Messages,
            "field `messages`: expected a message before the assistant's, got none",
        ),
        (
            json!({"prompt": "a", "reward_model": {"ground_truth": null}}),
            Verl,
            "field `reward_model.ground_truth`: expected a value, got null",
        ),
    ] {
        assert_eq!(plain(row, format).unwrap_err(), format!("row 7 (line 8), {want}"));
    }
    let section = DataSection { answer_column: Some("final".into()), ..DataSection::default() };
    let error = make(json!({"prompt": "a"}), Plain, &section).unwrap_err();
    assert!(error.contains("field `final`: expected a value, got no such field"), "{error}");
}

#[test]
fn odd_texts_pass_through_unchanged() {
    for text in [" ", "\u{0}", "👩‍👩‍👧", "\u{202e}אב", "e\u{301}"] {
        let task = plain(json!({"prompt": text}), DataFormat::Prompt).unwrap();
        assert_eq!(task.prompt, Prompt::Text(text.into()));
    }
}

#[test]
fn of_several_generations_those_found_right_are_taken() {
    let row = |more: Value| {
        let mut row =
            json!({"problem": "q", "answer": "4", "generations": ["<think>a</think>5", "<think>b</think>4", "4!"]});
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        plain(row, DataFormat::Openr1).unwrap().columns
    };
    let several = row(json!({"correctness_math_verify": [false, true, true], "correctness_llama": [true, true, true]}));
    assert_eq!(
        (&several["completion"], &several["target_lst"]),
        (&json!("<think>b</think>4"), &json!(["<think>b</think>4", "4!"]))
    );
    let judged =
        row(json!({"correctness_math_verify": [false, false, false], "correctness_llama": [false, false, true]}));
    assert_eq!((&judged["completion"], judged.get("target_lst")), (&json!("4!"), None));
    let nobody = row(json!({"is_reasoning_complete": [false, true, true]}));
    assert_eq!(nobody["completion"], "<think>b</think>4");
    let wrong = row(json!({"correctness_math_verify": [false, false, false]}));
    assert!(!wrong.contains_key("completion") && !wrong.contains_key("generations"), "{wrong:?}");
}

#[test]
fn steps_count_together_or_not_at_all() {
    let row = |labels: Value| {
        plain(json!({"prompt": "q", "completions": ["a", "b"], "labels": labels}), DataFormat::Stepwise)
    };
    assert_eq!(row(json!([true, 1])).unwrap().columns["completion"], "a\nb");
    assert!(!row(json!([true, false])).unwrap().columns.contains_key("completion"));
    assert!(row(json!([true])).unwrap_err().contains("field `labels`: expected a label for each"));
}
