//! What is learnt of a row: what was said in answer to what a rollout would be given, and nothing else.

use folgore_config::sft::Truncation;
use folgore_learner::sft::{Encoder, Sequence, Tally};
use folgore_model::{chat::Builtin, tokenizer::Tokenizer};
use folgore_protocol::{Body, Example, Message, Prompt};
use serde_json::{Map, Value, json};

fn fixture(path: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/fixtures").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// `<|im_end|>` is 2, `<|endoftext|>` is 0.
fn tokenizer(template: &str) -> Tokenizer {
    let (tokens, config) = (fixture("tiny-tied/tokenizer.json"), fixture("tiny-tied/tokenizer_config.json"));
    Tokenizer::from_json("tiny", &tokens, &config, Some(template)).unwrap()
}

/// A template in the manner of a published model.
fn published(name: &str) -> String {
    let all: Value = serde_json::from_str(&fixture("templates.json")).unwrap();
    let found = all.as_array().unwrap().iter().find(|entry| entry["name"] == name).unwrap();
    found["template"].as_str().unwrap().to_owned()
}

fn chatml() -> Tokenizer {
    tokenizer(Builtin::named("chatml").unwrap().source)
}

fn example(body: Body) -> Example {
    Example { id: "7".into(), source: "here".into(), body, columns: Map::new() }
}

fn talk(turns: &[(&str, &str)]) -> Vec<Message> {
    turns.iter().map(|(role, content)| Message::new(*role, *content)).collect()
}

fn encoder<'a>(tokenizer: &'a Tokenizer, variables: &'a Map<String, Value>) -> Encoder<'a> {
    Encoder {
        tokenizer,
        ends: &[2],
        variables,
        completion_only_loss: true,
        max_length: 1000,
        truncation: Truncation::Drop,
    }
}

fn encode(tokenizer: &Tokenizer, body: Body) -> Result<(Vec<Sequence>, Tally), String> {
    let (variables, mut tally) = (Map::new(), Tally::default());
    let sequences =
        encoder(tokenizer, &variables).encode(&example(body), &mut tally).map_err(|error| error.to_string())?;
    Ok((sequences, tally))
}

/// The learnt and the given runs of a sequence, as text.
fn runs(tokenizer: &Tokenizer, sequence: &Sequence) -> Vec<(bool, String)> {
    let flags: Vec<_> = sequence.ids.iter().zip(&sequence.learnt).collect();
    let run = |run: &[(&u32, &bool)]| {
        let ids: Vec<u32> = run.iter().map(|(id, _)| **id).collect();
        (*run[0].1, tokenizer.decode(&ids, false).unwrap())
    };
    flags.chunk_by(|a, b| a.1 == b.1).map(run).collect()
}

fn given(text: &str) -> (bool, String) {
    (false, text.to_owned())
}

fn learnt(text: &str) -> (bool, String) {
    (true, text.to_owned())
}

#[test]
fn a_conversation_is_one_sequence_of_which_the_assistant_is_learnt() {
    let tokenizer = chatml();
    let messages = talk(&[
        ("system", "be brief"),
        ("user", "one"),
        ("assistant", "1"),
        ("tool", "a result"),
        ("assistant", "two"),
        ("user", "three"),
        ("assistant", "3"),
    ]);
    let mut body = Body::conversation(messages.clone(), Vec::new());
    let (sequences, tally) = encode(&tokenizer, body.clone()).unwrap();
    let [whole] = sequences.as_slice() else { panic!("{sequences:?}") };
    let before = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n";
    let tool = "\n<|im_start|>tool\na result<|im_end|>\n<|im_start|>assistant\n";
    let user = "\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n";
    let expected = [
        given(before),
        learnt("1<|im_end|>"),
        given(tool),
        learnt("two<|im_end|>"),
        given(user),
        learnt("3<|im_end|>"),
    ];
    assert_eq!(runs(&tokenizer, whole), expected);
    let prompt = tokenizer.encode_prompt(&Prompt::Messages(messages[..2].to_vec()), &Map::new()).unwrap();
    assert!(whole.ids.starts_with(&prompt), "it begins with the prompt of a rollout");
    assert_eq!((tally.sequences, tally.learnt, tally.endless), (1, whole.learnt_tokens() as u64, 0));
    // a turn that is not learnt is context
    let Body::Conversation { learnt: flags, .. } = &mut body else { unreachable!() };
    flags[4] = false;
    let (sequences, _) = encode(&tokenizer, body).unwrap();
    let parts: Vec<String> = runs(&tokenizer, &sequences[0]).into_iter().filter(|r| r.0).map(|r| r.1).collect();
    assert_eq!(parts, ["1<|im_end|>", "3<|im_end|>"]);
}

#[test]
fn what_is_said_is_encoded_by_itself() {
    let tokenizer = chatml();
    // the line end of the prompt and those of the answer would be one token in the whole text
    let body = Body::conversation(talk(&[("user", "x"), ("assistant", "\n\n hi")]), Vec::new());
    let (sequences, _) = encode(&tokenizer, body).unwrap();
    let prompt = tokenizer.encode_prompt(&Prompt::Messages(talk(&[("user", "x")])), &Map::new()).unwrap();
    let said = tokenizer.encode_continuation("\n\n hi").unwrap();
    assert_eq!(sequences[0].ids, [prompt, said, vec![2]].concat());
}

#[test]
fn a_template_that_rewrites_history_gives_a_sequence_for_each_turn() {
    let tokenizer = tokenizer(&published("qwen3"));
    let mut messages = talk(&[("user", "a"), ("assistant", "A"), ("user", "b"), ("assistant", "B")]);
    for (place, thought) in [(1, "first"), (3, "second")] {
        messages[place].extra.insert("reasoning_content".into(), json!(thought));
    }
    let (sequences, tally) = encode(&tokenizer, Body::conversation(messages.clone(), Vec::new())).unwrap();
    let parts: Vec<String> = sequences.iter().flat_map(|s| runs(&tokenizer, s)).filter(|r| r.0).map(|r| r.1).collect();
    assert_eq!((sequences.len(), tally.split), (2, 1), "{parts:?}");
    assert!(parts[0].contains("first") && parts[1].contains("second"), "{parts:?}");
    let second = tokenizer.encode_prompt(&Prompt::Messages(messages[..3].to_vec()), &Map::new()).unwrap();
    assert!(sequences[1].ids.starts_with(&second), "the second is said where the first thought is forgotten");
    assert!(!tokenizer.decode(&sequences[1].ids, false).unwrap().contains("first"));
    // the same thoughts within the text
    let inline = talk(&[
        ("user", "a"),
        ("assistant", "<think>\nfirst\n</think>\n\nA"),
        ("user", "b"),
        ("assistant", "<think>second</think>B"),
    ]);
    assert_eq!(encode(&tokenizer, Body::conversation(inline, Vec::new())).unwrap().0, sequences);
}

#[test]
fn what_a_template_cannot_say_is_refused_by_name() {
    let mut messages = talk(&[("user", "a"), ("assistant", "A")]);
    let silent = tokenizer("{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}ASSISTANT: ");
    let refused = encode(&silent, Body::conversation(messages.clone(), Vec::new())).unwrap_err();
    assert!(refused.contains("row 7: message 1: the chat template asks for"), "{refused}");
    let asks = "{% if add_generation_prompt %}assistant: <think>{% endif %}";
    let thinks = tokenizer(&format!(
        "{{% for m in messages %}}{{{{ m.role }}}}: {{{{ m.content }}}}<|im_end|>{{% endfor %}}{asks}"
    ));
    let refused = encode(&thinks, Body::conversation(messages.clone(), Vec::new())).unwrap_err();
    assert!(refused.contains(r#"with "<think>" and remembers "A<|im_end|>""#), "{refused}");
    // without the generation prompt the reasoning has no place
    messages[1].extra.insert("reasoning_content".into(), json!("because"));
    let plain = tokenizer(
        "{% for m in messages %}{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
    );
    let refused = encode(&plain, Body::conversation(messages.clone(), Vec::new())).unwrap_err();
    assert!(refused.contains("leaves out (a part of) its reasoning"), "{refused}");
    messages[1].extra =
        [("tool_calls".to_owned(), json!([{"type": "function", "function": {"name": "look_up", "arguments": {}}}]))]
            .into_iter()
            .collect();
    let refused = encode(&plain, Body::conversation(messages.clone(), Vec::new())).unwrap_err();
    assert!(refused.contains("tool_calls"), "{refused}");
    assert!(
        encode(&chatml(), Body::conversation(messages, Vec::new())).unwrap_err().contains("no form for tool calls")
    );
}

#[test]
fn plain_texts_end_and_cannot_act() {
    let tokenizer = chatml();
    let attack = "x<|im_end|>y";
    let body = |completion: &str| Body::Completion { prompt: "1+1=".into(), completion: completion.into() };
    let (sequences, tally) = encode(&tokenizer, body(attack)).unwrap();
    assert_eq!(runs(&tokenizer, &sequences[0]), [given("1+1="), learnt("x<|im_end|>y<|im_end|>")]);
    assert_eq!(sequences[0].ids.iter().filter(|id| **id == 2).count(), 1);
    let prompt = tokenizer.encode_prompt(&Prompt::Text("1+1=".into()), &Map::new()).unwrap();
    assert!(sequences[0].ids.starts_with(&prompt));
    assert_eq!(tally.endless, 0);
    let (sequences, _) = encode(&tokenizer, Body::Text { text: "abc".into() }).unwrap();
    assert!(!sequences[0].learnt[0] && sequences[0].learnt[1..].iter().all(|on| *on));
    let (sequences, tally) = encode(&tokenizer, body("")).unwrap();
    assert_eq!((sequences.len(), tally.nothing_learnt), (0, 1));
}

#[test]
fn tags_are_the_tokens_that_a_policy_says() {
    let mut tokens: Value = serde_json::from_str(&fixture("tiny-tied/tokenizer.json")).unwrap();
    let tag = |id: u64, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": false})
    };
    tokens["added_tokens"].as_array_mut().unwrap().extend([tag(300, "<think>"), tag(301, "</think>")]);
    let config = fixture("tiny-tied/tokenizer_config.json");
    let template = Builtin::named("chatml").unwrap().source;
    let tokenizer = Tokenizer::from_json("tiny", &tokens.to_string(), &config, Some(template)).unwrap();
    let text = "<think>a</think>b<|im_end|>";
    let talk = Body::conversation(talk(&[("user", text), ("assistant", text)]), Vec::new());
    for body in [talk, Body::Completion { prompt: text.into(), completion: text.into() }] {
        let (sequences, _) = encode(&tokenizer, body).unwrap();
        let [s] = &sequences[..] else { panic!("{sequences:?}") };
        let (said, given): (Vec<_>, Vec<_>) = s.ids.iter().zip(&s.learnt).partition(|(_, learnt)| **learnt);
        let count = |ids: &[(&u32, &bool)], id: u32| ids.iter().filter(|(found, _)| **found == id).count();
        assert_eq!((count(&said, 300), count(&said, 301), count(&said, 2)), (1, 1, 1));
        assert_eq!((count(&given, 300), count(&given, 301)), (0, 0), "what others say stays text");
    }
}

#[test]
fn full_loss_is_on_every_token_but_the_first() {
    let (tokenizer, variables, mut tally) = (chatml(), Map::new(), Tally::default());
    let encoder = Encoder { completion_only_loss: false, ..encoder(&tokenizer, &variables) };
    let body = Body::conversation(talk(&[("user", "a"), ("assistant", "A")]), Vec::new());
    for body in [body, Body::Completion { prompt: "a b".into(), completion: " c".into() }] {
        let sequences = encoder.encode(&example(body), &mut tally).unwrap();
        assert_eq!(sequences[0].learnt_tokens(), sequences[0].ids.len() - 1);
    }
}

#[test]
fn what_is_too_long_is_counted() {
    let (tokenizer, variables) = (chatml(), Map::new());
    let long = || example(Body::Completion { prompt: "abc".into(), completion: "d".repeat(50) });
    for (truncation, max_length) in [(Truncation::Drop, 10), (Truncation::KeepStart, 10), (Truncation::KeepStart, 2)] {
        let mut tally = Tally::default();
        let encoder = Encoder { truncation, max_length, ..encoder(&tokenizer, &variables) };
        let kept = encoder.encode(&long(), &mut tally).unwrap();
        assert_eq!(tally.dropped + tally.truncated, 1, "{truncation:?} {max_length}");
        assert_eq!((tally.sequences, tally.nothing_learnt), (kept.len() as u64, 0));
        assert!(kept.iter().all(|s| s.ids.len() <= max_length && s.learnt_tokens() > 0));
    }
    let encoder = Encoder { truncation: Truncation::Stop, max_length: 10, ..encoder(&tokenizer, &variables) };
    let refused = encoder.encode(&long(), &mut Tally::default()).unwrap_err().to_string();
    assert!(refused.contains("row 7: ") && refused.contains("more than 10"), "{refused}");
}

#[test]
fn templates_of_ours_are_faithful_and_say_what_they_need() {
    let messages = talk(&[("system", "s"), ("user", "a"), ("assistant", "A"), ("user", "b"), ("assistant", "B")]);
    for name in ["chatml", "alpaca", "llama2", "mistral"] {
        let template = Builtin::named(name).unwrap();
        let tokenizer = tokenizer(template.source);
        assert_eq!(template.end(&tokenizer).unwrap(), 2, "{name}");
        let (sequences, tally) = encode(&tokenizer, Body::conversation(messages.clone(), Vec::new())).unwrap();
        assert_eq!((sequences.len(), tally.endless), (1, 0), "{name}");
        let parts: Vec<String> = runs(&tokenizer, &sequences[0]).into_iter().filter(|r| r.0).map(|r| r.1).collect();
        let parts: Vec<String> = parts.iter().map(|part| part.split_whitespace().collect()).collect();
        assert_eq!(parts, ["A<|im_end|>", "B<|im_end|>"], "{name}");
    }
    for name in ["llama3", "gemma"] {
        let template = Builtin::named(name).unwrap();
        let refused = template.end(&tokenizer(template.source)).unwrap_err().to_string();
        assert!(refused.contains("lacks") && refused.contains("chatml, alpaca, llama2, mistral fit"), "{refused}");
    }
    assert!(Builtin::named("vicuna").is_none());
    let none = Tokenizer::from_json("tiny", &fixture("tiny-tied/tokenizer.json"), "{}", None).unwrap();
    let refused = encode(&none, Body::conversation(messages, Vec::new())).unwrap_err();
    assert!(refused.contains("model.chat_template: chatml, alpaca"), "{refused}");
    let chosen = none.with_chat_template("{{ messages[0].content }}").unwrap();
    assert_eq!(chosen.chat_template(), Some("{{ messages[0].content }}"));
    assert_ne!(chosen.digest(), none.digest());
    assert!(none.with_chat_template("{% if").is_err());
}
