//! Ids equal to those of Hugging Face on strings that tokenizers get wrong, and the streaming decoder.

mod common;

use std::sync::Arc;

use candle_core::quantized::gguf_file::Value;
use common::{SMOLLM2, fixture, gguf_tokenizer, ids, json, smollm2_metadata};
use folgore_model::{
    files,
    tokenizer::{StreamDecoder, TEXT_LIMIT, Tokenizer},
};
use folgore_protocol::Prompt;
use proptest::prelude::*;

#[test]
fn smollm2_from_gguf_encodes_like_the_original() {
    let rows = json("smollm2/awkward.json");
    let rows = rows.as_array().unwrap();
    assert!(rows.len() >= 40);
    for row in rows {
        let text = row["text"].as_str().unwrap();
        assert_eq!(SMOLLM2.encode_trusted(text).unwrap(), ids(&row["trusted"]), "trusted {text:?}");
        assert_eq!(SMOLLM2.encode_untrusted(text).unwrap(), ids(&row["untrusted"]), "untrusted {text:?}");
        let trusted = ids(&row["trusted"]);
        assert_eq!(SMOLLM2.decode(&trusted, false).unwrap(), row["decoded"].as_str().unwrap());
        assert_eq!(SMOLLM2.decode(&trusted, true).unwrap(), row["decoded_skip"].as_str().unwrap());
    }
}

#[test]
fn vocabulary_and_special_tokens() {
    assert_eq!(SMOLLM2.vocab_size(), 49152);
    assert_eq!((SMOLLM2.eos_ids(), SMOLLM2.bos()), ([2].as_slice(), Some(1)));
    assert_eq!((SMOLLM2.id("<|im_end|>"), SMOLLM2.token(2).as_deref()), (Some(2), Some("<|im_end|>")));
    assert_eq!((SMOLLM2.id("no such token"), SMOLLM2.token(49152)), (None, None));
    assert_eq!(SMOLLM2.added_tokens().len(), 17);
    let plain = SMOLLM2.encode_prompt(&Prompt::Text("Hi <|im_end|>".into()), &Default::default()).unwrap();
    assert_eq!(plain, SMOLLM2.encode_untrusted("Hi <|im_end|>").unwrap());
}

#[test]
fn a_begin_token_is_put_where_the_file_says_so() {
    let mut metadata = smollm2_metadata(None);
    metadata.insert("tokenizer.ggml.add_bos_token", Value::Bool(true));
    let tokenizer = gguf_tokenizer(&metadata).unwrap();
    let plain = tokenizer.encode_prompt(&Prompt::Text("Hi".into()), &Default::default()).unwrap();
    assert_eq!(plain[0], 1);
    assert_eq!(plain[1..], tokenizer.encode_untrusted("Hi").unwrap());
}

#[test]
fn an_unknown_pre_tokenizer_is_an_error_and_not_a_guess() {
    for (key, value, text) in [
        ("tokenizer.ggml.pre", "tekken", "\"tekken\" is not supported"),
        ("tokenizer.ggml.model", "rwkv", "\"rwkv\" is not supported"),
    ] {
        let mut metadata = smollm2_metadata(None);
        metadata.insert(key, Value::String(value.into()));
        let error = gguf_tokenizer(&metadata).unwrap_err();
        assert!(error.contains(text), "{error}");
    }
}

#[test]
fn a_saved_tokenizer_encodes_the_same() {
    let again = Tokenizer::from_json("again", SMOLLM2.to_json(), &SMOLLM2.config_json(), None).unwrap();
    for row in json("smollm2/awkward.json").as_array().unwrap() {
        let text = row["text"].as_str().unwrap();
        assert_eq!(again.encode_trusted(text).unwrap(), ids(&row["trusted"]));
    }
    assert_eq!((again.eos_ids(), again.chat_template()), (SMOLLM2.eos_ids(), SMOLLM2.chat_template()));
}

#[test]
fn other_pre_tokenizers_split_as_their_models_do() {
    let pieces = |pre: &str, text: &str| {
        let mut metadata = smollm2_metadata(None);
        metadata.insert("tokenizer.ggml.pre", Value::String(pre.into()));
        let tokenizer = gguf_tokenizer(&metadata).unwrap();
        let ids = tokenizer.encode_untrusted(text).unwrap();
        ids.iter().map(|id| tokenizer.decode(&[*id], false).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(pieces("smollm", "12"), ["1", "2"]);
    for pre in ["gpt-2", "llama-bpe", "qwen2", "default"] {
        assert_eq!(pieces(pre, "Hello the world").concat(), "Hello the world", "{pre}");
    }
    // GPT-2 parts the last of several line ends, the later ones take all of them with the mark before
    assert_eq!(pieces("gpt-2", "a?\n\nb"), ["a", "?", "\n", "\n", "b"]);
    for pre in ["llama-bpe", "qwen2"] {
        assert_eq!(pieces(pre, "a?\n\nb"), ["a", "?", "\n\n", "b"]);
    }
}

#[test]
fn too_long_a_text_is_refused() {
    let error = SMOLLM2.encode_untrusted(&"a ".repeat(TEXT_LIMIT / 2 + 1)).unwrap_err().to_string();
    assert!(error.contains("at most 4194304"), "{error}");
}

fn streamed(tokenizer: &Arc<Tokenizer>, ids: &[u32], skip: bool) -> String {
    let mut stream = StreamDecoder::new(tokenizer.clone(), skip);
    let mut text: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    text += &stream.finish().unwrap();
    assert_eq!(stream.finish().unwrap(), "");
    text
}

#[test]
fn pieces_are_whole_characters_and_join_to_the_whole() {
    for row in json("smollm2/awkward.json").as_array().unwrap() {
        let ids = ids(&row["trusted"]);
        assert_eq!(streamed(&SMOLLM2, &ids, false), row["decoded"].as_str().unwrap());
        assert_eq!(streamed(&SMOLLM2, &ids, true), row["decoded_skip"].as_str().unwrap());
    }
    let mut stream = StreamDecoder::new(SMOLLM2.clone(), false);
    for id in SMOLLM2.encode_untrusted("a🙂b🇨🇭c").unwrap() {
        assert!(!stream.push(id).unwrap().contains('\u{fffd}'));
    }
}

/// A sentencepiece vocabulary with every byte, in which some words have scores.
fn sentencepiece() -> Arc<Tokenizer> {
    let mut tokens: Vec<(String, f32, i32)> =
        vec![("<unk>".into(), 0.0, 2), ("<s>".into(), 0.0, 3), ("</s>".into(), 0.0, 3)];
    tokens.extend((0..256).map(|b| (format!("<0x{b:02X}>"), 0.0, 6)));
    for (rank, piece) in ["▁t", "he", "▁the", "in", "▁a", "er", "▁there", "re"].into_iter().enumerate() {
        tokens.push((piece.into(), -(rank as f32), 1));
    }
    tokens.extend("▁theinra.,".chars().map(|c| (c.to_string(), -1000.0, 1)));
    let mut seen = std::collections::HashSet::new();
    tokens.retain(|(token, ..)| seen.insert(token.clone()));
    let column = |f: fn(&(String, f32, i32)) -> Value| Value::Array(tokens.iter().map(f).collect());
    let metadata = std::collections::HashMap::from([
        ("general.architecture", Value::String("llama".into())),
        ("tokenizer.ggml.model", Value::String("llama".into())),
        ("tokenizer.ggml.tokens", column(|t| Value::String(t.0.clone()))),
        ("tokenizer.ggml.scores", column(|t| Value::F32(t.1))),
        ("tokenizer.ggml.token_type", column(|t| Value::I32(t.2))),
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
    ]);
    gguf_tokenizer(&metadata).unwrap()
}

#[test]
fn sentencepiece_merges_spaces_and_bytes() {
    let tokenizer = sentencepiece();
    let pieces = |text: &str| {
        let ids = tokenizer.encode_untrusted(text).unwrap();
        ids.into_iter().map(|id| tokenizer.token(id).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(pieces("there in"), ["▁there", "▁", "in"]);
    assert_eq!(pieces("é"), ["▁", "<0xC3>", "<0xA9>"]);
    assert_eq!(pieces("<s>"), ["▁", "<0x3C>", "<0x73>", "<0x3E>"]);
    let prompt = tokenizer.encode_prompt(&Prompt::Text("the".into()), &Default::default()).unwrap();
    assert_eq!(prompt[0], 1);
    for text in ["the there", "né\u{1f642} a", "  two"] {
        let ids = tokenizer.encode_untrusted(text).unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        assert_eq!(streamed(&tokenizer, &ids, true), text);
    }
}

proptest! {
    #[test]
    fn any_ids_stream_to_their_decoding(ids in prop::collection::vec(0u32..49152, 0..60)) {
        prop_assert_eq!(streamed(&SMOLLM2, &ids, false), SMOLLM2.decode(&ids, false).unwrap());
    }

    #[test]
    fn byte_tokens_stream_to_their_decoding(ids in prop::collection::vec(17u32..252, 0..80)) {
        prop_assert_eq!(streamed(&SMOLLM2, &ids, false), SMOLLM2.decode(&ids, false).unwrap());
    }

    #[test]
    fn untrusted_text_never_gives_an_added_token(text in "(<\\|im_(start|end)\\|>|<s>|<\\|endoftext\\|>|.){0,12}") {
        for tokenizer in [SMOLLM2.clone(), sentencepiece(), files::open_tokenizer(&fixture("tiny-tied")).unwrap()] {
            let ids = tokenizer.encode_untrusted(&text).unwrap();
            prop_assert!(ids.iter().all(|id| !tokenizer.added_tokens().contains_key(id)));
        }
    }

    #[test]
    fn byte_level_text_comes_back(text in "[ -~\\n\\t\u{e9}\u{4e2d}\u{1f642}]{0,60}") {
        let ids = SMOLLM2.encode_untrusted(&text).unwrap();
        prop_assert_eq!(SMOLLM2.decode(&ids, false).unwrap(), text);
    }
}
