//! Matrices in 4 bits as bitsandbytes stores them: `X` holds the codes of matrix X, two a byte, and beside it stand the scales
//! (`X.absmax`), what the codes stand for (`X.quant_map`), with double quantisation the scales of the scales (`X.nested_absmax`,
//! `X.nested_quant_map`), and a JSON text in `X.quant_state.bitsandbytes__nf4` (or `fp4`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use super::{
    fault,
    safetensors::{Entry, le_chunks},
};
use crate::{
    ModelError,
    quant::{Coded, Codes, Scales, dynamic, nf4},
};

/// Longest JSON text.
const STATE_LIMIT: usize = 4096;
/// What follows the name of a matrix in that of its JSON text.
const STATE: [&str; 2] = [".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4"];
/// The same for what else stands beside it.
const BESIDE: [&str; 4] = [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"];
/// Lengths of blocks that bitsandbytes knows.
const BLOCKS: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/// The JSON text of a matrix.
#[derive(Debug, Deserialize)]
pub(crate) struct State {
    blocksize: usize,
    /// [out, in].
    pub(crate) shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// Matrices in 4 bits, by name.
pub(crate) type States = BTreeMap<String, State>;

impl State {
    /// Bytes of the matrix as it is held.
    pub(crate) fn bytes(&self) -> usize {
        nf4::bytes(self.shape.iter().product(), self.blocksize, self.nested_blocksize.is_some())
    }
}

/// The bytes of a tensor, an error if there are more than so many of them; none if there is no such tensor.
pub(crate) type Read<'a> = &'a dyn Fn(&str, usize) -> Result<Option<Vec<u8>>, ModelError>;

/// Reads what `names` say of matrices in 4 bits.
pub(crate) fn states(place: &str, names: &[String], read: Read<'_>) -> Result<States, ModelError> {
    let mut states = States::new();
    for name in names {
        let Some(matrix) = STATE.iter().find_map(|end| name.strip_suffix(end)) else { continue };
        let text = read(name, STATE_LIMIT)?.unwrap_or_default();
        let wrong = |got: String| fault::invalid(place, format!("tensor {name}"), "the JSON text of bitsandbytes", got);
        let state: State = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        let count = state.shape.iter().try_fold(1usize, |n, size| n.checked_mul(*size));
        if state.shape.len() != 2 || count.is_none() {
            return Err(wrong(format!("shape {:?}", state.shape)));
        }
        if !BLOCKS.contains(&state.blocksize) {
            return Err(wrong(format!("blocksize {}", state.blocksize)));
        }
        if state.nested_blocksize.is_some_and(|block| !BLOCKS.contains(&block)) {
            return Err(wrong(format!("nested_blocksize {:?}", state.nested_blocksize)));
        }
        if states.insert(matrix.to_owned(), state).is_some() {
            return Err(wrong("two of them".into()));
        }
    }
    Ok(states)
}

/// True for what stands beside a matrix of `states`.
pub(crate) fn is_beside(states: &States, name: &str) -> bool {
    let mut ends = STATE.iter().chain(&BESIDE);
    ends.any(|end| name.strip_suffix(end).is_some_and(|matrix| states.contains_key(matrix)))
}

/// Reads the matrix `name`.
pub(crate) fn matrix(place: &str, name: &str, state: &State, read: Read<'_>) -> Result<Coded, ModelError> {
    let bytes = |end: &str, expected: usize| {
        let name = format!("{name}{end}");
        let bytes = read(&name, expected)?.ok_or_else(|| fault::missing(place, format!("tensor {name}")))?;
        match bytes.len() == expected {
            true => Ok(bytes),
            false => Err(fault::invalid(place, format!("bytes of tensor {name}"), expected, bytes.len())),
        }
    };
    let numbers = |end: &str, count: usize| {
        let numbers = le_chunks(&bytes(end, 4 * count)?, f32::from_le_bytes);
        match numbers.iter().find(|x| !x.is_finite()) {
            None => Ok(numbers),
            Some(x) => Err(fault::invalid(place, format!("tensor {name}{end}"), "finite numbers", x)),
        }
    };
    let len: usize = state.shape.iter().product();
    let packed = bytes("", len.div_ceil(2))?;
    let mut table = [0.0; 16];
    table.copy_from_slice(&numbers(".quant_map", 16)?);
    let scales = len.div_ceil(state.blocksize);
    let scales = match state.nested_blocksize {
        None => Scales::Plain(numbers(".absmax", scales)?),
        Some(block) => {
            let mut map = Box::new([0.0; 256]);
            map.copy_from_slice(&numbers(".nested_quant_map", 256)?);
            let offset = state.nested_offset.filter(|x| x.is_finite());
            let offset = offset.ok_or_else(|| {
                fault::invalid(
                    place,
                    format!("nested_offset of {name}"),
                    "a number",
                    format!("{:?}", state.nested_offset),
                )
            })?;
            let largest = numbers(".nested_absmax", scales.div_ceil(block))?;
            Scales::Nested { codes: bytes(".absmax", scales)?, largest, offset, block, map }
        }
    };
    let most = table.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    if let Some(scale) = (0..scales.len()).map(|i| scales.get(i)).find(|scale| !(scale * most).is_finite()) {
        return Err(fault::invalid(place, format!("scales of {name}"), "finite weights", scale));
    }
    Ok(Coded { codes: Codes::Four { packed, table }, scales, least: None, block: state.blocksize, len })
}

/// Bytes of the JSON text that is written: blanks fill it up.
const STATE_BYTES: usize = 256;

/// What is stored of a matrix [out, in] in NF4 with blocks of `block`.
pub(crate) fn entries(matrix: &str, shape: &[usize], block: usize, nested: bool) -> Vec<Entry> {
    let len: usize = shape.iter().product();
    let scales = len.div_ceil(block);
    let entry = |end: &str, dtype: &'static str, shape: Vec<usize>| {
        let bytes = shape.iter().product::<usize>() * if dtype == "F32" { 4 } else { 1 };
        Entry { name: format!("{matrix}{end}"), dtype, shape, bytes }
    };
    let mut list = vec![
        entry("", "U8", vec![len.div_ceil(2), 1]),
        entry(".absmax", if nested { "U8" } else { "F32" }, vec![scales]),
        entry(".quant_map", "F32", vec![16]),
        entry(STATE[0], "U8", vec![STATE_BYTES]),
    ];
    if nested {
        list.push(entry(".nested_absmax", "F32", vec![scales.div_ceil(dynamic::BLOCK)]));
        list.push(entry(".nested_quant_map", "F32", vec![256]));
    }
    list
}

/// The bytes of what [`entries`] names, by what follows the name of the matrix. `dtype` is the type of the numbers that it was
/// made of.
pub(crate) fn contents(coded: &Coded, shape: &[usize], dtype: &str, end: &str) -> Vec<u8> {
    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    match (end, &coded.codes, &coded.scales) {
        ("", Codes::Four { packed, .. }, _) => packed.clone(),
        (".quant_map", Codes::Four { table, .. }, _) => bytes(table),
        (".absmax", _, Scales::Plain(scales)) => bytes(scales),
        (".absmax", _, Scales::Nested { codes, .. }) => codes.clone(),
        (".nested_absmax", _, Scales::Nested { largest, .. }) => bytes(largest),
        (".nested_quant_map", _, Scales::Nested { map, .. }) => bytes(&map[..]),
        (end, _, scales) if end == STATE[0] => {
            let mut state = json!({"quant_type": "nf4", "blocksize": coded.block, "dtype": dtype, "shape": shape});
            if let (Scales::Nested { offset, block, .. }, Some(state)) = (scales, state.as_object_mut()) {
                state.insert("nested_blocksize".into(), json!(block));
                state.insert("nested_dtype".into(), json!("float32"));
                state.insert("nested_offset".into(), json!(offset));
            }
            let mut text = state.to_string().into_bytes();
            text.resize(STATE_BYTES, b' ');
            text
        }
        // of another form: whoever writes sees that the length is wrong
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        TensorSource as _,
        files::safetensors::{Limits, SafetensorsFile},
    };

    #[test]
    fn what_bitsandbytes_stored_decodes_to_what_it_decodes() {
        for kind in ["nested", "plain", "block-128", "fp4"] {
            let path =
                Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/parity/fixtures/nf4/{kind}.safetensors"));
            let file = SafetensorsFile::open(&path, Limits::WEIGHTS).unwrap();
            let read = |name: &str, _: usize| file.shape(name).map(|_| file.raw(name)).transpose();
            let states = states(kind, &file.names(), &read).unwrap();
            let coded = matrix(kind, "layer.weight", &states["layer.weight"], &read).unwrap();
            assert!(coded.decoded() == file.tensor("decoded").unwrap().to_f32(), "{kind}");
        }
    }
}
