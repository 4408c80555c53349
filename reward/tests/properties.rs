//! Whatever a policy writes, a rule gives a verdict; whatever is understood as an answer equals itself.

use folgore_protocol::{GroupId, Outcome, Prompt, ScoreItem, SeatKey, StopReason};
use folgore_reward::{
    Rule,
    math_answer::{Answer, Comparison},
    rules::{countdown, dapo_math, exact_match, gsm8k, math, numeric, think_format},
};
use proptest::prelude::*;
use serde_json::{Map, json};

/// Text made of the pieces that the parsers look for, and of anything else.
fn text() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "1",
        "2",
        "34",
        "1,000",
        "0.5",
        ".",
        "-",
        "+",
        "*",
        "/",
        "^",
        "_",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        r"\{",
        r"\}",
        ",",
        ";",
        ":",
        "=",
        "%",
        r"\%",
        r"\frac",
        r"\dfrac{1}{2}",
        r"\frac12",
        r"\sqrt",
        r"\sqrt[3]{8}",
        r"\pi",
        r"\pm",
        r"\infty",
        r"\cup",
        r"\in",
        r"\text{ cm}",
        r"\text{",
        r"\boxed{",
        r"\boxed{1}",
        r"\left(",
        r"\right)",
        "x",
        "y",
        "xy",
        "e",
        "1e5",
        "1e308",
        "π",
        "√",
        "½",
        "²",
        "\u{ff11}",
        "\u{200b}",
        " ",
        "\n",
        "$",
        "<answer>",
        "</answer>",
        "<think>",
        "</think>",
        "####",
        "Answer:",
        " or ",
        " and ",
        "word",
        "nan",
        "inf",
        "cm",
        "percent",
        "\\",
        "°",
        "∅",
        "‹",
        "⟅",
        "é",
        "\0",
        "\u{202e}",
    ]);
    let any_piece = prop_oneof![8 => pieces.prop_map(str::to_owned), 1 => any::<String>()];
    prop::collection::vec(any_piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// Text that is more often an answer.
fn answer() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        any::<i32>().prop_map(|n| n.to_string()),
        (any::<i16>(), 0u16..1000).prop_map(|(a, b)| format!("{a}.{b}")),
        (any::<i16>(), 1u16..500).prop_map(|(a, b)| format!(r"\frac{{{a}}}{{{b}}}")),
        (1u8..20, 1u16..200).prop_map(|(a, b)| format!(r"{a}\sqrt{{{b}}}")),
        (1u8..20, -9i8..9).prop_map(|(a, b)| format!("{a}x{b:+}")),
        (1u16..200).prop_map(|a| format!("{a}%")),
    ];
    let list = (prop::collection::vec(number.clone(), 1..4), 0..6usize).prop_map(|(items, shape)| {
        let (open, close) = [("(", ")"), ("[", "]"), ("(", "]"), (r"\{", r"\}"), ("", ""), ("x=", "")][shape];
        format!("{open}{}{close}", items.join(", "))
    });
    prop_oneof![number, list]
}

fn item(completion: &str, answer: &str) -> ScoreItem {
    let columns = json!({"answer": answer, "numbers": [3, 3, 8, 8], "target": 24});
    ScoreItem {
        id: SeatKey { group: GroupId(0), sample: 0, draw: 0 },
        columns: columns.as_object().cloned().unwrap_or_else(Map::new),
        prompt: Prompt::Text(String::new()),
        completion: completion.to_owned(),
        completion_ids: Vec::new(),
        stop_reason: StopReason::Eos,
        said: Vec::new(),
    }
}

fn rules() -> Vec<Box<dyn Rule>> {
    let tagged = exact_match::Args { tag: Some("answer".into()), fold_unicode: true, ..Default::default() };
    let flexible = gsm8k::Args { method: gsm8k::Method::Flexible, ..Default::default() };
    let whole = math::Args { answer_in: math::AnswerIn::Whole, ..Default::default() };
    vec![
        Box::new(exact_match::ExactMatch::new(tagged).unwrap()),
        Box::new(math::Math::new(Default::default()).unwrap()),
        Box::new(math::Math::new(whole).unwrap()),
        Box::new(gsm8k::Gsm8k::new(Default::default()).unwrap()),
        Box::new(gsm8k::Gsm8k::new(flexible).unwrap()),
        Box::new(numeric::Numeric::new(Default::default()).unwrap()),
        Box::new(dapo_math::DapoMath::new(Default::default()).unwrap()),
        Box::new(think_format::ThinkFormat::new(Default::default()).unwrap()),
        Box::new(countdown::Countdown::new(Default::default()).unwrap()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_rule_is_total_and_deterministic(completion in text(), gold in text()) {
        for rule in rules() {
            let item = item(&completion, &gold);
            let outcome = rule.score(&item);
            prop_assert_eq!(&outcome, &rule.score(&item));
            prop_assert!(!matches!(outcome, Outcome::Error { .. }), "{}: {:?}", rule.name(), outcome);
            prop_assert!(outcome.total().is_none_or(f64::is_finite));
        }
    }

    #[test]
    fn equality_is_reflexive_and_symmetric(a in prop_oneof![text(), answer()], b in prop_oneof![text(), answer()]) {
        let how = Comparison::default();
        let loose = Comparison { tolerance: 0.1, percent_as_number: true };
        let (a, b) = (Answer::parse(&a), Answer::parse(&b));
        for parsed in [&a, &b].into_iter().flatten() {
            prop_assert!(parsed.equals(parsed, how), "{parsed:?} is not itself");
            prop_assert!(parsed.equals(parsed, loose), "{parsed:?} is not itself");
        }
        if let (Ok(a), Ok(b)) = (&a, &b) {
            prop_assert_eq!(a.equals(b, how), b.equals(a, how));
            prop_assert_eq!(a.equals(b, loose), b.equals(a, loose));
        }
    }

    #[test]
    fn generated_answers_are_understood(text in answer()) {
        prop_assert!(Answer::parse(&text).is_ok(), "{text}: {:?}", Answer::parse(&text));
    }

    #[test]
    fn a_fraction_equals_itself_in_lower_terms_and_no_neighbour(a in -9999i64..9999, b in 1i64..9999, k in 1i64..99) {
        let how = Comparison::default();
        let parse = |text: String| Answer::parse(&text).unwrap();
        let fraction = parse(format!("{a}/{b}"));
        let expanded = parse(format!(r"\frac{{{}}}{{{}}}", a * k, b * k));
        let neighbour = parse(format!("{}/{b}", a + 1));
        prop_assert!(fraction.equals(&expanded, how));
        prop_assert!(!fraction.equals(&neighbour, how));
    }
}

#[test]
fn long_and_deep_text_is_refused_and_not_followed() {
    for text in ["(", "{", "[", r"\{", r"\frac", r"\sqrt", r"\text{", "-", "^", "x^", "1,", "((((1", "√", r"\boxed{"]
    {
        let long = text.repeat(20_000);
        assert!(Answer::parse(&long).is_err(), "{text} repeated");
        for n in [40, 60, 200, 400] {
            let _ = Answer::parse(&text.repeat(n));
        }
        for rule in rules() {
            assert!(
                !matches!(rule.score(&item(&long, "1")), Outcome::Error { .. }),
                "{} on {text} repeated",
                rule.name()
            );
        }
    }
}
