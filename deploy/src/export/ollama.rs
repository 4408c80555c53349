//! A Modelfile. Ollama has templates in Go's language: for the usual formats of conversations one is written, if it makes of three
//! conversations what the policy's own template makes of them; else its user is told that Ollama chooses one.

use std::fmt::Write as _;

use anyhow::Result;
use folgore_model::{files::ModelFiles, tokenizer::Tokenizer};
use folgore_protocol::Message;

use crate::agent::AgentConfig;

/// Name of the file.
pub const FILE: &str = "Modelfile";
/// Tokens of a conversation that Ollama keeps if nothing is said.
const CONTEXT: usize = 4096;
/// Of a chat template that is like none of [`FORMATS`].
const UNKNOWN: &str = "the chat template has no known form in Ollama, which chooses one that looks alike: compare `ollama show \
                       --template` with the chat template, or use llama.cpp, which reads the one inside the GGUF file";

/// What stands around the parts of a round of conversation.
struct Format {
    system: [&'static str; 2],
    prompt: [&'static str; 2],
    response: [&'static str; 2],
    /// The system's text stands inside of the user's turn.
    inside: bool,
}

static FORMATS: [Format; 5] = [
    // ChatML: SmolLM2, Qwen and many others
    Format {
        system: ["<|im_start|>system\n", "<|im_end|>\n"],
        prompt: ["<|im_start|>user\n", "<|im_end|>\n"],
        response: ["<|im_start|>assistant\n", "<|im_end|>\n"],
        inside: false,
    },
    // Llama 3
    Format {
        system: ["<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"],
        prompt: ["<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"],
        response: ["<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"],
        inside: false,
    },
    // Gemma
    Format {
        system: ["", "\n\n"],
        prompt: ["<start_of_turn>user\n", "<end_of_turn>\n"],
        response: ["<start_of_turn>model\n", "<end_of_turn>\n"],
        inside: true,
    },
    // Mistral
    Format { system: ["", "\n\n"], prompt: ["[INST] ", "[/INST]"], response: [" ", "</s>"], inside: true },
    // DeepSeek
    Format {
        system: ["", ""],
        prompt: ["<\u{ff5c}User\u{ff5c}>", ""],
        response: ["<\u{ff5c}Assistant\u{ff5c}>", "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>"],
        inside: false,
    },
];

/// One question, its system text and its answer.
struct Round<'a>(Option<&'a str>, &'a str, Option<&'a str>);

impl Format {
    fn render(&self, rounds: &[Round]) -> String {
        let mut text = String::new();
        for Round(system, prompt, response) in rounds {
            let system =
                system.map(|system| format!("{}{system}{}", self.system[0], self.system[1])).unwrap_or_default();
            let [open, close] = self.prompt;
            text += &if self.inside {
                format!("{open}{system}{prompt}{close}")
            } else {
                format!("{system}{open}{prompt}{close}")
            };
            text += self.response[0];
            if let Some(response) = response {
                text += response;
                text += self.response[1];
            }
        }
        text
    }

    /// In Go's language; Ollama fills it for each round, the system's text in the first.
    fn go(&self) -> String {
        let system = format!("{{{{ if .System }}}}{}{{{{ .System }}}}{}{{{{ end }}}}", self.system[0], self.system[1]);
        let ([open, close], [answer, end]) = (self.prompt, self.response);
        let turn = match self.inside {
            true => format!("{open}{system}{{{{ .Prompt }}}}{close}"),
            false => format!("{system}{{{{ if .Prompt }}}}{open}{{{{ .Prompt }}}}{close}{{{{ end }}}}"),
        };
        format!("{turn}{answer}{{{{ .Response }}}}{end}")
    }
}

/// A Modelfile, and what its user should know.
pub struct Modelfile {
    /// The text.
    pub text: String,
    /// What the text cannot make sure of.
    pub note: Option<String>,
}

/// The Modelfile of an export of `files`: a GGUF file and, where it is apart, that of the adapter.
pub fn modelfile(files: &[String], base: &ModelFiles, agent: &AgentConfig) -> Result<Modelfile> {
    let context = base.config.max_position_embeddings;
    of_tokenizer(files, &base.tokenizer, context, agent)
}

fn of_tokenizer(files: &[String], tokenizer: &Tokenizer, context: usize, agent: &AgentConfig) -> Result<Modelfile> {
    let (mut text, mut note) = (String::new(), None);
    let gguf = files.iter().filter(|name| name.ends_with(".gguf"));
    for (instruction, name) in ["FROM", "ADAPTER"].into_iter().zip(gguf) {
        writeln!(text, "{instruction} ./{name}")?;
    }
    let mut system = agent.system_prompt.clone();
    match tokenizer.chat_template().map(|_| format_of(tokenizer, agent)) {
        Some(Some((format, default))) => {
            writeln!(text, "TEMPLATE \"\"\"{}\"\"\"", format.go())?;
            system = system.or(default);
        }
        Some(None) => {
            writeln!(text, "# no TEMPLATE: {UNKNOWN}")?;
            note = Some(format!("{FILE} has no TEMPLATE: {UNKNOWN}"));
        }
        // spoken to in plain text
        None => writeln!(text, "TEMPLATE \"\"\"{{{{ .Prompt }}}}\"\"\"")?,
    }
    if let Some(system) = system {
        writeln!(text, "SYSTEM {}", quoted("the system prompt", &system)?)?;
    }
    let ends = tokenizer.eos_ids().iter().filter_map(|id| tokenizer.token(*id));
    for stop in ends.chain(agent.sampling.stop.iter().cloned()) {
        writeln!(text, "PARAMETER stop {}", quoted("a stop text", &stop)?)?;
    }
    let sampling = &agent.sampling;
    if sampling.temperature > 0.0 {
        // as the policy was trained, and not as Ollama draws by default
        writeln!(text, "PARAMETER temperature {}", sampling.temperature)?;
        writeln!(text, "PARAMETER top_p {}", sampling.top_p)?;
        writeln!(text, "PARAMETER top_k {}", sampling.top_k)?;
        writeln!(text, "PARAMETER min_p {}", sampling.min_p)?;
        writeln!(text, "PARAMETER repeat_penalty {}", sampling.repetition_penalty)?;
    }
    if sampling.max_new_tokens > 0 {
        // what is longer than its window Ollama cuts without a word
        let needed = sampling.max_prompt_tokens as usize + sampling.max_new_tokens as usize;
        writeln!(text, "PARAMETER num_ctx {}", needed.max(CONTEXT).min(context))?;
        writeln!(text, "PARAMETER num_predict {}", sampling.max_new_tokens)?;
    }
    Ok(Modelfile { text, note })
}

/// `text` as a Modelfile has it: between three quotes it stands as it is, and nothing is escaped.
fn quoted(what: &str, text: &str) -> Result<String> {
    anyhow::ensure!(
        !text.contains("\"\"\"") && !text.ends_with('"'),
        "{what} {text:?} cannot be said in a Modelfile, which ends texts at three quotes"
    );
    Ok(format!("\"\"\"{text}\"\"\""))
}

/// The format that makes of conversations what the template makes of them, and the system text that the template puts where
/// there is none.
fn format_of(tokenizer: &Tokenizer, agent: &AgentConfig) -> Option<(&'static Format, Option<String>)> {
    let bos = tokenizer.prefix().first().and_then(|id| tokenizer.token(*id)).unwrap_or_default();
    let render = |messages: &[Message]| {
        let rendered = tokenizer.render_chat(messages, &agent.variables(), true).ok()?;
        // the runtime puts the begin token itself where the tokenizer does
        Some(rendered.text.strip_prefix(bos.as_str()).unwrap_or(&rendered.text).to_owned())
    };
    let message = Message::new;
    let (system, first, second) = (message("system", "S"), message("user", "One"), message("user", "Two"));
    let alone = render(std::slice::from_ref(&first))?;
    let with_system = render(&[system.clone(), first.clone()])?;
    let longer = render(&[system, first, message("assistant", "A"), second])?;
    FORMATS.iter().find_map(|format| {
        let fits = format.render(&[Round(Some("S"), "One", None)]) == with_system
            && format.render(&[Round(Some("S"), "One", Some("A")), Round(None, "Two", None)]) == longer;
        if !fits {
            return None;
        }
        if format.render(&[Round(None, "One", None)]) == alone {
            return Some((format, None));
        }
        let rest = alone.strip_prefix(format.system[0])?;
        let default = rest[..rest.find(format.system[1]).filter(|_| !format.inside)?].to_owned();
        (format.render(&[Round(Some(default.as_str()), "One", None)]) == alone).then_some((format, Some(default)))
    })
}

/// The argument of the first `instruction` of a Modelfile that stands before any text of several lines.
pub fn argument(text: &str, instruction: &str) -> Option<String> {
    let head = text.split("\"\"\"").next().unwrap_or_default();
    let found = head.lines().find_map(|line| line.strip_prefix(instruction)?.strip_prefix(' '));
    found.map(|argument| argument.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer(template: &str) -> Tokenizer {
        let json = r#"{"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null, "decoder": null, "added_tokens": [],
            "model": {"type": "BPE", "vocab": {"a": 0, "<|im_end|>": 1}, "merges": [], "unk_token": "a"}}"#;
        Tokenizer::from_json("t", json, r#"{"eos_token": "<|im_end|>"}"#, Some(template)).unwrap()
    }

    fn modelfile(files: &[String], tokenizer: &Tokenizer, agent: &AgentConfig) -> Result<String> {
        of_tokenizer(files, tokenizer, 8192, agent).map(|file| file.text)
    }

    const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + \
                          '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    #[test]
    fn known_formats_are_written_in_gos_language() {
        let agent = AgentConfig::default();
        let text = modelfile(&["m.gguf".into()], &tokenizer(CHATML), &agent).unwrap();
        assert!(text.starts_with(
            "FROM ./m.gguf\nTEMPLATE \"\"\"{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n"
        ));
        assert!(text.contains("PARAMETER stop \"\"\"<|im_end|>\"\"\"\n") && !text.contains("SYSTEM \"\"\""), "{text}");
        let default =
            "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are T<|im_end|>\n' }}{% endif %}";
        let text =
            modelfile(&["m.gguf".into(), "a.gguf".into()], &tokenizer(&(default.to_owned() + CHATML)), &agent).unwrap();
        assert!(text.contains("SYSTEM \"\"\"You are T\"\"\"") && text.contains("\nADAPTER ./a.gguf\n"), "{text}");
        assert_eq!(argument(&text, "ADAPTER").as_deref(), Some("./a.gguf"));
    }

    #[test]
    fn lengths_are_those_of_the_training() {
        let mut agent = AgentConfig::default();
        (agent.sampling.max_prompt_tokens, agent.sampling.max_new_tokens) = (6000, 1000);
        let text = |context| of_tokenizer(&["m.gguf".into()], &tokenizer(CHATML), context, &agent).unwrap().text;
        assert!(text(8192).contains("PARAMETER num_ctx 7000\nPARAMETER num_predict 1000\n"), "{}", text(8192));
        assert!(text(2048).contains("num_ctx 2048\n"));
        agent.sampling.max_prompt_tokens = 100;
        let text = |context| of_tokenizer(&["m.gguf".into()], &tokenizer(CHATML), context, &agent).unwrap().text;
        assert!(text(8192).contains("num_ctx 4096\n"), "not less than without it");
    }

    #[test]
    fn what_a_modelfile_cannot_say_is_refused() {
        let mut agent = AgentConfig::default();
        agent.sampling.stop = vec!["\n\n".into()];
        let text = modelfile(&["m.gguf".into()], &tokenizer(CHATML), &agent).unwrap();
        assert!(text.contains("PARAMETER stop \"\"\"\n\n\"\"\"\n"), "as it is: {text}");
        agent.system_prompt = Some("Say \"\"\" often.".into());
        let told = modelfile(&["m.gguf".into()], &tokenizer(CHATML), &agent).unwrap_err().to_string();
        assert!(told.contains("the system prompt"), "{told}");
    }

    #[test]
    fn other_formats_are_left_to_the_file() {
        let odd = tokenizer(&CHATML.replace("<|im_end|>' +", "<|im_end|> ' +"));
        let Modelfile { text, note } = of_tokenizer(&["m.gguf".into()], &odd, 8192, &AgentConfig::default()).unwrap();
        assert!(text.contains("# no TEMPLATE") && note.unwrap().contains("no known form in Ollama"), "{text}");
        let none = Tokenizer::from_json("t", tokenizer(CHATML).to_json(), "{}", None).unwrap();
        let Modelfile { text, note } = of_tokenizer(&["m.gguf".into()], &none, 8192, &AgentConfig::default()).unwrap();
        assert!(text.contains("TEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n") && note.is_none(), "{text}");
        assert_eq!(argument("TEMPLATE \"\"\"\nFROM x\n\"\"\"", "FROM"), None);
    }
}
