//! The published schemas against what is really sent and answered.

use std::{path::Path, process::Command};

use boon::{Compiler, SchemaIndex, Schemas};
use folgore_protocol::{
    Answer, GroupId, Message, Outcome, Prompt, Said, Scope, ScoreItem, ScoreReply, ScoreRequest, SeatKey, SegmentKind,
    StopReason,
};
use folgore_reward::external::wire;
use serde_json::{Map, Value, json};

struct Contract {
    schemas: Schemas,
    request: SchemaIndex,
    reply: SchemaIndex,
}

impl Contract {
    fn new() -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        let at = |name: &str| format!("https://folgore.invalid/{name}");
        for name in ["request.json", "reply.json"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema").join(name);
            let schema = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
            compiler.add_resource(&at(name), schema).unwrap();
        }
        let request = compiler.compile(&at("request.json"), &mut schemas).unwrap();
        let reply = compiler.compile(&at("reply.json"), &mut schemas).unwrap();
        Self { schemas, request, reply }
    }

    #[track_caller]
    fn request(&self, value: &Value) {
        self.schemas.validate(value, self.request).unwrap_or_else(|e| panic!("{value}: {e}"));
    }

    fn takes_reply(&self, value: &Value) -> bool {
        self.schemas.validate(value, self.reply).is_ok()
    }
}

fn id(sample: u32) -> SeatKey {
    SeatKey { group: GroupId(7), sample, draw: 1 }
}

fn request() -> ScoreRequest {
    let call = json!({"tool_calls": [{"id": "1"}]});
    let mut with_more = Message::new("assistant", "");
    with_more.extra = call.as_object().unwrap().clone();
    let prompts = [
        Prompt::Text("5+7=".into()),
        Prompt::Messages(vec![Message::new("user", "5+7="), with_more]),
        Prompt::Messages(vec![]),
    ];
    let stops = [StopReason::Eos, StopReason::StopString, StopReason::Length, StopReason::Context];
    let items = stops.into_iter().enumerate().map(|(i, stop_reason)| ScoreItem {
        id: id(i as u32),
        columns: Map::from_iter([("answer".to_owned(), json!("12")), ("deep".to_owned(), json!({"list": [null]}))]),
        prompt: prompts[i % prompts.len()].clone(),
        completion: "\u{0}\"12\"\n".into(),
        completion_ids: vec![3, u32::MAX],
        stop_reason,
        said: match i {
            0 => Vec::new(),
            _ => vec![
                Said { by: SegmentKind::Sampled, text: "a".into() },
                Said { by: SegmentKind::Observed, text: "b".into() },
            ],
        },
    });
    ScoreRequest { items: items.collect(), budget_ms: 60_000, scope: Scope::Sample }
}

#[test]
fn requests_are_as_published_whichever_way_they_go() {
    let contract = Contract::new();
    contract.request(&serde_json::from_slice(&wire::question(7, &request()).unwrap()).unwrap());
    contract.request(&serde_json::to_value(request()).unwrap());
    let group = ScoreRequest { scope: Scope::Group, ..request() };
    let asked: Value = serde_json::from_slice(&wire::question(7, &group).unwrap()).unwrap();
    assert_eq!(asked["scope"], "group");
    contract.request(&asked);
    contract.request(&serde_json::to_value(group).unwrap());
    let mut odd = serde_json::to_value(request()).unwrap();
    odd["items"][0]["unheard"] = json!(1);
    assert!(contract.schemas.validate(&odd, contract.request).is_err(), "what is not published is not sent");
}

#[test]
fn replies_are_taken_as_published() {
    let contract = Contract::new();
    let outcomes = [
        Outcome::scored("a", 0.5),
        Outcome::Unscorable { reason: "gold".into() },
        Outcome::Error { reason: "late".into() },
        Outcome::Scored { total: -1.0, parts: vec![], answer: None },
    ];
    let ours = ScoreReply { outcomes: (0..4).map(id).zip(outcomes).collect() };
    let seat = serde_json::to_value(id(0)).unwrap();
    for (reply, taken) in [
        (serde_json::to_value(ours).unwrap(), true),
        (json!({"id": 7, "scores": [1, 0.5, null, {"error": "x"}]}), true),
        (json!({"id": 7, "error": "ValueError: x"}), true),
        (json!({"outcomes": [[seat, {"outcome": "scored", "total": 1}]]}), true),
        (json!({"scores": ["1", 1, 1, 1]}), false),
        (json!({"scores": [[1], 1, 1, 1]}), false),
        (json!({"scores": [true, 1, 1, 1]}), false),
        (json!({"outcomes": [[seat, {"outcome": "scored", "total": null}]]}), false),
        (json!({"outcomes": [[seat, {"outcome": "scored"}]]}), false),
        (json!({"outcomes": [[seat, {"outcome": "fine", "total": 1}]]}), false),
        (json!({"outcomes": [[seat, {"outcome": "unjudged", "completion": "12"}]]}), false),
        (json!({"scores": [1, 1, 1, 1], "error": "x"}), false),
        (json!({}), false),
    ] {
        assert_eq!(contract.takes_reply(&reply), taken, "{reply}");
        // What the schema refuses gives no number to the item that it concerns.
        let answer: Answer = serde_json::from_value(reply.clone()).unwrap();
        let first = answer.outcomes("r", &[0, 1, 2, 3].map(id)).ok().and_then(|o| o[0].total());
        assert!(taken || first.is_none(), "{reply}: {first:?}");
    }
}

#[test]
fn the_shim_answers_as_published() {
    let contract = Contract::new();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/rewards");
    let folder = tempfile::tempdir().unwrap();
    let answer = |request: &ScoreRequest| {
        let line = folder.path().join("request");
        std::fs::write(&line, wire::question(7, request).unwrap()).unwrap();
        let done = Command::new("python3")
            .args([examples.join("folgore_reward.py"), examples.join("exact.py"), "exact".into()])
            .stdin(std::fs::File::open(&line).unwrap())
            .output()
            .unwrap();
        let reply: Value = serde_json::from_slice(&done.stdout).unwrap_or_else(|e| panic!("{e}: {done:?}"));
        assert!(contract.takes_reply(&reply), "{reply}");
        reply
    };
    // The example reads texts: conversations are an exception of its own, and so the whole request is an error.
    let error = answer(&request());
    assert!(error["id"] == 7 && error["error"].as_str().unwrap().starts_with("TypeError: "), "{error}");
    let mut texts = request();
    texts.items.iter_mut().for_each(|item| item.prompt = Prompt::Text("5+7=".into()));
    texts.items[0].completion = "<think>5+7=12</think><answer>12</answer>".into();
    assert_eq!(answer(&texts), json!({"id": 7, "scores": [1.0, 0.0, 0.0, 0.0]}));
}
