//! Numbers in few bits, as bitsandbytes codes them: [`nf4`] for frozen weights (QLoRA, Dettmers et al. 2023), [`dynamic`] for the
//! scales of its blocks and for optimiser states (Dettmers et al. 2022).

pub mod dynamic;
pub mod nf4;

/// The least that a block is divided by.
const SMALLEST: f32 = 1e-38;

/// The largest magnitude of a block, and its numbers over that. A block of fewer than `block` numbers, the last one, is divided;
/// the others are multiplied by the inverse, as bitsandbytes does.
fn scaled(numbers: &[f32], block: usize) -> (f32, impl Iterator<Item = f32>) {
    let largest = numbers.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let divisor = largest.max(SMALLEST);
    let (inverse, whole) = (1.0 / divisor, numbers.len() == block);
    let over = move |x: &f32| if whole { x * inverse } else { x / divisor };
    (largest, numbers.iter().map(move |x| over(x).clamp(-1.0, 1.0)))
}
