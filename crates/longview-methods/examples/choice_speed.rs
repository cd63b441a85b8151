//! What one choice of a token takes, by how it is chosen: `cargo run --release -p longview-methods --example
//! choice_speed -- [VOCABULARY]`.

use std::error::Error;
use std::time::{Duration, Instant};

use longview_engine::sampling::{Candidates, Sampler};
use longview_methods::Decode;

const CHAINS: [&str; 5] = [
    "greedy",
    "temperature(0.7), top-k(40)",
    "temperature(0.7), top-p(0.95)",
    "temperature(0.7), min-p(0.05)",
    "temperature(0.7)",
];

/// Choices of which the fastest is told.
const ROUNDS: usize = 150;

/// Lets those tokens through whose bits are set, as a grammar does.
struct Masked(Vec<u32>);

impl Sampler for Masked {
    fn apply(&mut self, candidates: &mut Candidates, _history: &[u32]) {
        candidates.keep_masked(&self.0);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let vocabulary = match std::env::args().nth(1) {
        Some(count) => count.parse()?,
        None => 128_256,
    };
    let forms = [("peaked", peaked(vocabulary)), ("flat", flat(vocabulary))];
    for (form, logits) in forms {
        for text in CHAINS {
            println!("{form:7} {text:40} {:6.0} µs", time(text, None, &logits)?);
        }
        let some = |id: usize| id.is_multiple_of(101);
        let most = |id: usize| !id.is_multiple_of(32);
        let masks: [(&str, &dyn Fn(usize) -> bool); 2] = [
            ("1 of 101 tokens allowed", &some),
            ("31 of 32 allowed", &most),
        ];
        for (what, is_set) in masks {
            let mask = (0..vocabulary).collect::<Vec<_>>();
            let word = |ids: &[usize]| {
                ids.iter()
                    .map(|&id| u32::from(is_set(id)) << (id % 32))
                    .sum()
            };
            let mask: Vec<u32> = mask.chunks(32).map(word).collect();
            let took = time(CHAINS[2], Some(mask), &logits)?;
            println!(
                "{form:7} {:40} {took:6.0} µs",
                format!("{what}, top-p(0.95)")
            );
        }
    }
    Ok(())
}

/// Microseconds of the fastest choice.
fn time(text: &str, mask: Option<Vec<u32>>, logits: &[f32]) -> Result<f64, Box<dyn Error>> {
    let mut chain = text.parse::<Decode>()?.with_open_seed(1).chain();
    if let Some(mask) = mask {
        chain = chain.after(Box::new(Masked(mask)));
    }
    let mut least = Duration::MAX;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        chain.choose(logits, &[])?;
        least = least.min(begun.elapsed());
    }
    Ok(least.as_secs_f64() * 1e6)
}

/// Logits of a model that is sure: a few stand far above the others.
fn peaked(vocabulary: usize) -> Vec<f32> {
    let raised = |(id, logit): (usize, f32)| 4.0 * logit + if id % 9_973 == 7 { 12.0 } else { 0.0 };
    flat(vocabulary)
        .into_iter()
        .enumerate()
        .map(raised)
        .collect()
}

/// Logits of one that is not.
fn flat(vocabulary: usize) -> Vec<f32> {
    let mut x = 1_u32;
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 8) as f32 / (1 << 24) as f32
    };
    let logit = |_| (0..6).map(|_| next()).sum::<f32>() - 3.0;
    (0..vocabulary).map(logit).collect()
}
