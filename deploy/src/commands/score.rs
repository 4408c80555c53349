//! `folgore score`: log-probs of given tokens, the logits behind them, and the gradient of their mean cross-entropy.
//!
//! Rows are computed together up to a budget of tokens; what a row gives does not depend on that. Logits are computed and
//! written a few positions at a time, so that memory stays bounded whatever the vocabulary.

use std::{collections::BTreeMap, num::NonZeroUsize};

use anyhow::{Context as _, Result, bail, ensure};
use folgore_model::{
    HostTensor, Tensors,
    backend::{Backend, Cpu},
    decoder::{Backprop, Ragged, Tape},
    files::{atomic::write_atomic, safetensors},
    lora::Adapter,
    params::Params,
};
use serde::{Serialize, Serializer, ser::SerializeSeq};

use super::tokenize::text_ids;
use crate::{
    cli::ScoreArgs,
    policy::Policy,
    stream::{self, AtHand, Out, Row, Rows},
};

/// Tokens computed in one call; a longer row is computed alone.
const TOKENS_PER_CALL: usize = 2048;
/// Positions whose logits are in memory at once.
const LOGIT_ROWS: usize = 64;

/// Runs the command.
pub fn run(args: ScoreArgs) -> Result<()> {
    ensure!(
        args.temperature > 0.0 && args.temperature.is_finite(),
        "--temperature: expected above 0, got {}",
        args.temperature
    );
    let policy = Policy::under(&args.plumbing.model, args.plumbing.adapter.as_deref(), Cpu::new().into())?;
    let file = args.plumbing.adapter.as_deref().map(|folder| policy.read_adapter(folder)).transpose()?;
    let adapter = file.as_ref().map(|file| policy.device_adapter(file)).transpose()?;
    let gradient = match (&args.grad, &file) {
        (None, _) => None,
        (Some(_), None) => bail!("--grad: expected --adapter too: the gradient is that of its tensors"),
        (Some(_), Some(file)) => {
            let params =
                Params::lora_from(&**policy.decoder.backend(), policy.config(), file.config.shape(), &file.tensors)?;
            Some(Gradient { params, loss: 0.0, tokens: 0 })
        }
    };
    let mut scorer = Scorer { policy: &policy, adapter, gradient, temperature: args.temperature, logits: args.logits };
    stream::serve(&args.plumbing.stream, |rows, out| scorer.run(rows, out))?;
    match (scorer.gradient, &args.grad) {
        (Some(gradient), Some(path)) => {
            let bytes = gradient.into_file(policy.decoder.backend())?;
            Ok(write_atomic(path, &bytes)?)
        }
        _ => Ok(()),
    }
}

/// One row in the form that it is computed in.
struct Asked {
    place: String,
    ids: Vec<u32>,
}

/// The gradient so far: the sum over tokens, divided at the end.
struct Gradient {
    params: Params<Cpu>,
    loss: f64,
    tokens: u64,
}

impl Gradient {
    /// Safetensors of the gradient of the mean, with the loss in the header.
    fn into_file(self, backend: &Cpu) -> Result<Vec<u8>> {
        ensure!(self.tokens > 0, "--grad: no row has a token after its first: nothing to take a gradient of");
        let mean = 1.0 / self.tokens as f64;
        let scaled = |tensor: HostTensor| {
            let values = tensor.to_f32().into_iter().map(|v| (f64::from(v) * mean) as f32).collect();
            HostTensor::f32(tensor.shape, values)
        };
        let tensors: Tensors = self.params.grads(backend).into_iter().map(|(name, t)| (name, scaled(t))).collect();
        let facts = [("loss", (self.loss * mean).to_string()), ("tokens", self.tokens.to_string())];
        let facts: BTreeMap<String, String> = facts.map(|(key, value)| (key.to_owned(), value)).into();
        Ok(safetensors::to_bytes(&tensors, &facts))
    }
}

struct Scorer<'a> {
    policy: &'a Policy,
    adapter: Option<Adapter<Cpu>>,
    gradient: Option<Gradient>,
    temperature: f32,
    logits: bool,
}

impl Scorer<'_> {
    fn run(&mut self, rows: &mut Rows, out: &mut Out) -> Result<()> {
        while let Some(first) = rows.next()? {
            let (batch, bad) = self.gather(first, rows);
            if !batch.is_empty() {
                self.score(&batch, out)?;
                out.flush()?;
            }
            bad?;
        }
        Ok(())
    }

    /// `first` and the rows at hand that fit beside it; also why there are no more, if that is an error.
    fn gather(&self, first: Row, rows: &mut Rows) -> (Vec<Asked>, Result<()>) {
        let (mut batch, mut tokens, mut next) = (Vec::new(), 0, Ok(AtHand::Row(first)));
        loop {
            let row = match next {
                Ok(AtHand::Row(row)) => row,
                Ok(AtHand::Nothing | AtHand::End) => return (batch, Ok(())),
                Err(error) => return (batch, Err(error)),
            };
            match self.read(row) {
                Ok(asked) => {
                    tokens += asked.ids.len();
                    batch.push(asked);
                }
                Err(error) => return (batch, Err(error)),
            }
            if tokens >= TOKENS_PER_CALL {
                return (batch, Ok(()));
            }
            next = rows.at_hand();
        }
    }

    fn read(&self, mut row: Row) -> Result<Asked> {
        let place = row.place.clone();
        let ids = match row.one_of(&["ids", "text"]).context(place.clone())? {
            "ids" => row.ids("ids"),
            _ => row.text("text").and_then(|text| text_ids(&self.policy.tokenizer, &text)),
        };
        let ids = ids.and_then(|ids| row.end().map(|()| ids)).and_then(|ids| self.check(ids)).context(place.clone())?;
        Ok(Asked { place, ids })
    }

    fn check(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        let config = self.policy.config();
        let (limit, vocab) = (config.max_position_embeddings, config.vocab_size);
        ensure!(!ids.is_empty(), "expected at least one token");
        ensure!(ids.len() <= limit, "the row has {} tokens, the model's context holds {limit}", ids.len());
        match ids.iter().find(|id| **id as usize >= vocab) {
            None => Ok(ids),
            Some(id) => bail!("token id {id} is outside the vocabulary of {vocab}"),
        }
    }

    fn score(&mut self, batch: &[Asked], out: &mut Out) -> Result<()> {
        let sequences: Vec<&[u32]> = batch.iter().map(|asked| asked.ids.as_slice()).collect();
        let input = Ragged::whole(&sequences);
        let decoder = &self.policy.decoder;
        // the last position of a row has no next token: it gets any target, and its log-prob is left out
        let targets: Vec<u32> = sequences.iter().flat_map(|ids| ids[1..].iter().copied().chain([0])).collect();
        let adapter = self.adapter.as_ref();
        let hidden = match &self.gradient {
            None => Hidden::Plain(decoder.forward_only(&input, adapter)),
            Some(_) => {
                let recompute = (input.len() > TOKENS_PER_CALL).then_some(NonZeroUsize::MIN);
                Hidden::Taped(Box::new(decoder.forward_train(input, adapter, Backprop { recompute, dropout: None })))
            }
        };
        let head = decoder.logprobs(hidden.get(), &targets, self.temperature);
        let mut begin = 0;
        for asked in batch {
            let end = begin + asked.ids.len();
            let logprobs = &head.logprobs[begin..end - 1];
            if let Some(bad) = logprobs.iter().position(|lp| !lp.is_finite()) {
                bail!(
                    "{}: the log-prob of token {} is {}: are the weights damaged?",
                    asked.place,
                    bad + 1,
                    logprobs[bad]
                );
            }
            let logits = self.logits.then(|| Logits { policy: self.policy, hidden: hidden.get(), begin, end });
            out.write(&Reply { ids: &asked.ids, logprobs, logits })?;
            begin = end;
        }
        if let (Some(gradient), Hidden::Taped(tape)) = (&mut self.gradient, hidden) {
            let mut dlogprobs = vec![-1.0; targets.len()];
            let ends = sequences.iter().scan(0, |end, ids| {
                *end += ids.len();
                Some(*end - 1)
            });
            ends.for_each(|end| dlogprobs[end] = 0.0);
            let trained = head.logprobs.iter().zip(&dlogprobs).filter(|(_, d)| **d != 0.0);
            gradient.loss -= trained.map(|(lp, _)| f64::from(*lp)).sum::<f64>();
            gradient.tokens += (targets.len() - batch.len()) as u64;
            decoder.backward(*tape, adapter, &targets, self.temperature, &head.lse, &dlogprobs, &mut gradient.params);
        }
        Ok(())
    }
}

/// Last hidden states of every position, with what a backward needs where there is to be one.
enum Hidden {
    Plain(<Cpu as Backend>::Buf),
    Taped(Box<Tape<Cpu>>),
}

impl Hidden {
    fn get(&self) -> &<Cpu as Backend>::Buf {
        match self {
            Hidden::Plain(hidden) => hidden,
            Hidden::Taped(tape) => tape.hidden(),
        }
    }
}

#[derive(Serialize)]
struct Reply<'a> {
    ids: &'a [u32],
    logprobs: &'a [f32],
    #[serde(skip_serializing_if = "Option::is_none")]
    logits: Option<Logits<'a>>,
}

/// The logits of positions `begin..end` of a call (of the model itself: no temperature), computed while they are written.
struct Logits<'a> {
    policy: &'a Policy,
    hidden: &'a <Cpu as Backend>::Buf,
    begin: usize,
    end: usize,
}

impl Serialize for Logits<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (decoder, config) = (&self.policy.decoder, self.policy.config());
        let backend = &**decoder.backend();
        let mut list = serializer.serialize_seq(Some(self.end - self.begin))?;
        for begin in (self.begin..self.end).step_by(LOGIT_ROWS) {
            let places: Vec<_> = (begin..self.end.min(begin + LOGIT_ROWS)).map(|row| (0, row as u32)).collect();
            let mut rows = backend.alloc(places.len() * config.hidden_size);
            backend.gather_rows(&[self.hidden], &places, config.hidden_size, &mut rows, 0);
            for row in decoder.logits(&rows).chunks(config.vocab_size) {
                if let Some(bad) = row.iter().find(|logit| !logit.is_finite()) {
                    return Err(serde::ser::Error::custom(format!("a logit is {bad}: are the weights damaged?")));
                }
                list.serialize_element(row)?;
            }
        }
        list.end()
    }
}
