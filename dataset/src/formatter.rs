//! What becomes of a row after it was read, so that sources of many kinds teach one form.

use folgore_config::data::Formatter;
use folgore_protocol::Message;
use serde_json::Value;

use crate::shape::{Chat, Fields, Said, Shaped, call};

/// Alpaca's frame, with the words of its authors.
const FRAME: &str =
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.";
/// Marks of a call that is written as text.
const CALL: (&str, &str) = ("<tool_call>", "</tool_call>");
/// Columns that name a language of programming.
const LANGUAGE: [&str; 4] = ["language", "lang", "programming_language", "code_language"];
/// Columns that hold the beginning of a program.
const STARTER: [&str; 3] = ["starter_code", "starter", "function_header"];

/// Brings `shaped` into the form of `formatter`. The error is why it has none.
pub(crate) fn apply(formatter: Formatter, shaped: Shaped) -> Result<Shaped, &'static str> {
    let Shaped { said, mut columns, unfit } = shaped;
    let said = match formatter {
        Formatter::AsIs => said,
        Formatter::Chat => chat(said),
        Formatter::Instruction => instruction(said)?,
        Formatter::FunctionCalling => function_calling(chat(said))?,
        Formatter::Coding => coding(chat(said), &columns),
        Formatter::Language => Said::Text(language(said)),
    };
    // columns that are handed on hold what is said now
    if formatter != Formatter::AsIs
        && columns.contains_key("completion")
        && let Some(answer) = said.answer()
    {
        columns.insert("completion".into(), answer.into());
    }
    Ok(Shaped { said, columns, unfit })
}

/// Plain prompts and completions become turns; plain text stays.
fn chat(said: Said) -> Said {
    match said {
        Said::Plain { prompt, completion } => {
            let answer = completion.map(|text| Message::new("assistant", text));
            Said::Chat(Chat::answered(vec![Message::new("user", prompt)], answer.into_iter().collect(), Vec::new()))
        }
        other => other,
    }
}

fn instruction(said: Said) -> Result<Said, &'static str> {
    let framed = |frame: &str, text: &str, completion| {
        let prompt = format!("{frame}\n\n### Instruction:\n{text}\n\n### Response:\n");
        Said::Plain { prompt, completion }
    };
    match said {
        Said::Text(_) => Err("plain text is no instruction (formatter instruction)"),
        Said::Plain { prompt, completion } => Ok(framed(FRAME, &prompt, completion)),
        Said::Chat(chat) => {
            let (system, rest) = match chat.messages.split_first() {
                Some((first, rest)) if first.role == "system" => (first.content.as_str(), rest),
                _ => (FRAME, chat.messages.as_slice()),
            };
            match rest {
                [user] if user.role == "user" => Ok(framed(system, &user.content, None)),
                [user, answer] if user.role == "user" && answer.role == "assistant" && answer.extra.is_empty() => {
                    Ok(framed(system, &user.content, Some(answer.content.clone())))
                }
                _ => Err("more than one instruction and one answer (formatter instruction)"),
            }
        }
    }
}

fn function_calling(said: Said) -> Result<Said, &'static str> {
    let Said::Chat(mut chat) = said else { return Err("plain text calls no function (formatter function_calling)") };
    for message in chat.messages.iter_mut().filter(|message| message.role == "assistant") {
        if message.extra.contains_key("tool_calls") {
            continue;
        }
        let (calls, rest) = calls_in(&message.content);
        if !calls.is_empty() {
            message.content = rest;
            message.extra.insert("tool_calls".into(), calls.into());
        }
    }
    let calls = chat.messages.iter().any(|message| message.extra.contains_key("tool_calls"));
    if chat.tools.is_empty() && !calls {
        return Err("neither tools nor calls of them (formatter function_calling)");
    }
    Ok(Said::Chat(chat))
}

/// Calls that stand in a text, and the text without them; what is no call stays.
fn calls_in(text: &str) -> (Vec<Value>, String) {
    let (mut calls, mut rest, mut left) = (Vec::new(), String::new(), text);
    while let Some((before, inside)) = left.split_once(CALL.0) {
        let Some((body, after)) = inside.split_once(CALL.1) else { break };
        let read = serde_json::from_str::<Value>(body.trim()).ok().and_then(|value| call("call", &value).ok());
        rest.push_str(before);
        match read {
            Some(call) => calls.push(call),
            None => rest.push_str(&format!("{}{body}{}", CALL.0, CALL.1)),
        }
        left = after;
    }
    rest.push_str(left);
    (calls, rest.trim().to_owned())
}

fn coding(said: Said, columns: &Fields) -> Said {
    let Said::Chat(mut chat) = said else { return said };
    let column = |names: &[&str]| {
        names.iter().find_map(|name| columns.get(*name)?.as_str()).filter(|text| !text.trim().is_empty())
    };
    let language = column(&LANGUAGE).unwrap_or_default().to_lowercase();
    if let Some(starter) = column(&STARTER)
        && let Some(last) = chat.messages[..chat.asked].iter_mut().rfind(|message| message.role == "user")
        && !last.content.contains(starter)
    {
        last.content = format!("{}\n\n```{language}\n{}\n```", last.content, starter.trim_end());
    }
    for message in chat.messages.iter_mut().filter(|message| message.role == "assistant") {
        if is_code(&message.content) {
            message.content = format!("```{language}\n{}\n```", message.content.trim_matches('\n'));
        }
    }
    Said::Chat(chat)
}

/// Whether a text is code and nothing else: no fence, and most lines end or begin as lines of programs do.
fn is_code(text: &str) -> bool {
    if text.contains("```") || text.contains("<think>") {
        return false;
    }
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let begins = |line: &str| {
        const WORDS: [&str; 17] = [
            "def ",
            "class ",
            "import ",
            "from ",
            "return",
            "fn ",
            "let ",
            "const ",
            "var ",
            "function ",
            "public ",
            "#include",
            "if ",
            "for ",
            "while ",
            "use ",
            "@",
        ];
        let line = line.trim_start();
        WORDS.iter().any(|word| line.starts_with(word))
    };
    let ends = |line: &str| {
        line.trim_end().ends_with([';', '{', '}', ':', ')', ']', ','])
            || line.starts_with("    ")
            || line.contains(" = ")
    };
    let like = lines.iter().filter(|line| begins(line) || ends(line)).count();
    !lines.is_empty() && begins(lines[0]) && like * 10 >= lines.len() * 7
}

/// What was said, one after the other, without roles.
fn language(said: Said) -> String {
    match said {
        Said::Text(text) => text,
        Said::Plain { prompt, completion } => format!("{prompt}{}", completion.unwrap_or_default()),
        Said::Chat(chat) => {
            let texts: Vec<&str> =
                chat.messages.iter().map(|m| m.content.trim()).filter(|text| !text.is_empty()).collect();
            texts.join("\n\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plain(prompt: &str, completion: &str, columns: Value) -> Shaped {
        let said = Said::Plain { prompt: prompt.into(), completion: Some(completion.into()) };
        Shaped { said, columns: columns.as_object().unwrap().clone(), unfit: None }
    }

    fn messages(formatter: Formatter, shaped: Shaped) -> Value {
        match apply(formatter, shaped).unwrap().said {
            Said::Chat(chat) => serde_json::to_value(chat.messages).unwrap(),
            Said::Text(text) => text.into(),
            Said::Plain { prompt, completion } => json!([prompt, completion]),
        }
    }

    #[test]
    fn each_formatter_makes_its_form() {
        let row = || plain("Name a colour.", "Red.", json!({}));
        let turns = json!([{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Red."}]);
        assert_eq!(messages(Formatter::Chat, row()), turns);
        assert_eq!(messages(Formatter::AsIs, row()), json!(["Name a colour.", "Red."]));
        assert_eq!(
            messages(Formatter::Instruction, row()),
            json!([format!("{FRAME}\n\n### Instruction:\nName a colour.\n\n### Response:\n"), "Red."])
        );
        assert_eq!(messages(Formatter::Language, row()), "Name a colour.Red.");
        assert!(apply(Formatter::FunctionCalling, row()).unwrap_err().contains("neither tools"));
    }

    #[test]
    fn calls_in_texts_become_calls() {
        let said = "I look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>";
        let made = messages(Formatter::FunctionCalling, plain("q", said, json!({})));
        assert_eq!(made[1]["content"], "I look.");
        assert_eq!(made[1]["tool_calls"][0]["function"], json!({"name": "f", "arguments": {"x": 1}}));
        assert_eq!(
            calls_in("<tool_call>no</tool_call> <tool_call>open").1,
            "<tool_call>no</tool_call> <tool_call>open"
        );
    }

    #[test]
    fn code_gets_a_fence_and_words_do_not() {
        let columns = json!({"language": "Python", "starter_code": "def f(x):", "completion": "old"});
        let code = "def f(x):\n    return x + 1";
        let made = apply(Formatter::Coding, plain("Add one.", code, columns.clone())).unwrap();
        assert_eq!(made.columns["completion"], format!("```python\n{code}\n```"));
        let asked = made.said.prompt();
        assert_eq!(asked.last_text(), "Add one.\n\n```python\ndef f(x):\n```");
        let words = "Use a loop. It adds one to each value, and that is all.";
        assert_eq!(messages(Formatter::Coding, plain("q", words, json!({})))[1]["content"], words);
    }
}
