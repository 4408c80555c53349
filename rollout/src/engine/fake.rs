//! A model that shows every mistake of the cache: a hidden state is a hash of what the cache really holds for its row.

use folgore_model::{
    backend::{BLOCK, SampleSpec, Sampled},
    decoder::Ragged,
};
use folgore_protocol::seed;

use super::{KeptRows, Model, TextPiece};

/// Number of token ids; 0 ends a generation.
pub(crate) const VOCAB: u32 = 50;
/// Its context.
pub(crate) const CONTEXT: usize = 120;

/// The fake. Its adapter is a number.
pub(crate) struct Fake {
    /// (adapter, token) in each lane.
    lanes: Vec<(u64, u32)>,
    pub(crate) forwards: usize,
    pub(crate) tokens: usize,
}

impl Fake {
    pub(crate) fn new(blocks: usize) -> Self {
        Self { lanes: vec![(u64::MAX, u32::MAX); blocks * BLOCK], forwards: 0, tokens: 0 }
    }
}

fn hash(lanes: impl Iterator<Item = (u64, u32)>) -> [f32; 2] {
    let state = lanes.fold(1, |state, (adapter, token)| seed::mix(&[state, adapter, u64::from(token)]));
    [(state & 0xff_ffff) as f32, ((state >> 24) & 0xff_ffff) as f32]
}

fn sample(row: &[f32], spec: &SampleSpec) -> Sampled {
    let state = seed::mix(&[row[0] as u64, row[1] as u64, u64::from(spec.uniform.to_bits()), spec.seen.len() as u64]);
    Sampled { id: (state % u64::from(VOCAB)) as u32, logprob: -((state >> 40) as f32), ..Sampled::default() }
}

/// What a sequence gives when it is alone in the world: ids and log-probs of `count` new tokens.
pub(crate) fn alone(adapter: u64, prompt: &[u32], seed: u64, count: usize) -> (Vec<u32>, Vec<f32>) {
    let mut ids = prompt.to_vec();
    let mut logprobs = Vec::new();
    for i in 0..count {
        let row = hash(ids.iter().map(|id| (adapter, *id)));
        let spec = SampleSpec {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seen: Vec::new(),
            uniform: seed::uniform(seed, i as u64),
        };
        let token = sample(&row, &spec);
        ids.push(token.id);
        logprobs.push(token.logprob);
    }
    (ids.split_off(prompt.len()), logprobs)
}

impl Model for Fake {
    type Adapter = u64;
    type Hidden = Vec<f32>;

    fn context(&self) -> usize {
        CONTEXT
    }

    fn vocab_size(&self) -> usize {
        VOCAB as usize
    }

    fn eos_ids(&self) -> &[u32] {
        &[0]
    }

    fn blocks(&self) -> usize {
        self.lanes.len() / BLOCK
    }

    fn copy_blocks(&mut self, copies: &[(u32, u32)]) {
        // Last first: a plan whose copies must keep their order does not fit a device that makes them all at once.
        for (from, to) in copies.iter().rev() {
            let from = *from as usize * BLOCK;
            self.lanes.copy_within(from..from + BLOCK, *to as usize * BLOCK);
        }
    }

    fn forward(&mut self, input: &Ragged, adapters: &[u64], _kept: Option<KeptRows<'_>>) -> Vec<f32> {
        self.forwards += 1;
        self.tokens += input.len();
        let mut place_of_row = Vec::new();
        for span in &input.spans {
            for (i, row) in span.rows.clone().enumerate() {
                let place = span.start + i;
                assert_eq!(place as u32, input.positions[row]);
                let lane = span.table[place / BLOCK] as usize * BLOCK + place % BLOCK;
                self.lanes[lane] = (adapters[span.adapter], input.tokens[row]);
                place_of_row.push((span, place));
            }
        }
        let key = |table: &[u32], j: usize| self.lanes[table[j / BLOCK] as usize * BLOCK + j % BLOCK];
        let rows = input.wanted.iter().map(|row| &place_of_row[*row as usize]);
        rows.flat_map(|(span, place)| hash((0..=*place).map(|j| key(&span.table, j)))).collect()
    }

    fn sample(&self, hidden: &Vec<f32>, specs: &[SampleSpec]) -> Vec<Sampled> {
        assert_eq!(hidden.len(), 2 * specs.len());
        hidden.chunks(2).zip(specs).map(|(row, spec)| sample(row, spec)).collect()
    }

    /// The longer a sequence, the surer.
    fn entropies(&self, ids: &[u32], places: &[u32], _adapter: &u64, _temperature: f32) -> Vec<f32> {
        vec![1.0 / ids.len() as f32; places.len()]
    }

    fn download(&self, hidden: &Vec<f32>) -> Vec<f32> {
        hidden.clone()
    }

    fn upload(&self, rows: &[f32]) -> Vec<f32> {
        rows.to_vec()
    }
}

/// Text of the fake's ids: letters.
pub(crate) struct Letters;

impl TextPiece for Letters {
    fn piece(&self, ids: &[u32]) -> String {
        ids.iter().map(|id| char::from_u32('A' as u32 + id).unwrap_or('?')).collect()
    }
}
