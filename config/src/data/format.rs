//! Shapes of rows, and what becomes of them.

use serde::{Deserialize, Serialize};

/// How the rows of a file are shaped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataFormat {
    /// Look at the first rows, decide, and say so.
    #[default]
    Auto,
    /// `prompt`: a text or a list of messages; every other column goes to the reward.
    Prompt,
    /// `prompt` and `completion`, texts or lists of messages.
    PromptCompletion,
    /// `messages`: the last assistant message is the completion, what precedes it the prompt.
    Messages,
    /// verl: `data_source`, `prompt` as messages, `reward_model.ground_truth`, `extra_info`; LUFFY's with `target` too.
    Verl,
    /// `text`: plain text, all of it learnt; asks nothing.
    Text,
    /// `chosen` and `rejected`, with `prompt` or with the prompt in both; what was chosen is the completion.
    Preference,
    /// `prompt`, `completion`, `label`; a completion counts where its label is true.
    UnpairedPreference,
    /// `prompt`, `completions` (steps), `labels`; the steps count together where all labels are true.
    Stepwise,
    /// `conversations` of `from` and `value`, with `system` and `tools`.
    Sharegpt,
    /// `instruction`, `input`, `output`, with `system` and `history`; `chosen` in the place of `output`.
    Alpaca,
    /// A question with `reasoning_content` and an answer, as services that think export them.
    Reasoning,
    /// OpenR1-Math: `problem`, `generations`, `correctness_math_verify`; the first right generation is the completion.
    Openr1,
    /// `question`, and `answer` with its working and `#### 42`.
    Gsm8k,
    /// `problem`, `solution`, `answer`.
    Math500,
    /// `problem` and an `answer` from 0 to 999.
    Aime,
    /// `prompt`, `test`, `entry_point`, `canonical_solution`.
    Humaneval,
    /// `request` and `response` as Ollama's or OpenAI's interface has them, one exchange a row.
    RequestLog,
}

impl DataFormat {
    /// All of them with their names as they are configured.
    pub const NAMES: [(&str, DataFormat); 18] = [
        ("auto", DataFormat::Auto),
        ("prompt", DataFormat::Prompt),
        ("prompt_completion", DataFormat::PromptCompletion),
        ("messages", DataFormat::Messages),
        ("verl", DataFormat::Verl),
        ("text", DataFormat::Text),
        ("preference", DataFormat::Preference),
        ("unpaired_preference", DataFormat::UnpairedPreference),
        ("stepwise", DataFormat::Stepwise),
        ("sharegpt", DataFormat::Sharegpt),
        ("alpaca", DataFormat::Alpaca),
        ("reasoning", DataFormat::Reasoning),
        ("openr1", DataFormat::Openr1),
        ("gsm8k", DataFormat::Gsm8k),
        ("math500", DataFormat::Math500),
        ("aime", DataFormat::Aime),
        ("humaneval", DataFormat::Humaneval),
        ("request_log", DataFormat::RequestLog),
    ];

    /// Its name as it is configured.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, format)| *format == self).map_or("auto", |(name, _)| name)
    }

    /// The format called `name`.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, format)| *format)
    }
}

/// What becomes of a row after it was read, so that sources of many kinds teach one form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Formatter {
    /// Nothing.
    #[default]
    AsIs,
    /// Plain prompts and completions become a turn of the user and one of the assistant.
    Chat,
    /// One instruction and one answer in Alpaca's frame, as plain text; conversations of more turns are left out.
    Instruction,
    /// Conversations with tools: calls written as text (`<tool_call>`) become calls; rows without tools are left out.
    FunctionCalling,
    /// As `chat`; code without a fence gets one, with the row's `language`, and `starter_code` joins the question.
    Coding,
    /// Plain text, all of it learnt: what was said, one after the other, without roles.
    Language,
}

/// Where the reasoning of a message goes that has a field of its own (`reasoning_content`, `thinking`, `reasoning`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reasoning {
    /// In front of the content, as `<think>` ... `</think>`: every chat template shows it.
    #[default]
    Inline,
    /// Into `reasoning_content`, for templates that know it; others do not show it.
    Field,
    /// Nowhere.
    Drop,
}
