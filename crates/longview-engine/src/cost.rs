//! What passes cost in operations, and how long such work takes as measured on this machine.

use std::collections::VecDeque;
use std::time::Duration;

use longview_models::blueprint::{AttentionBlueprint, Blueprint, LayerBlueprint, Mixer};

/// Operations of a piece of work, by the two kinds whose speeds differ.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Operations {
    /// Of products of rows with weights.
    pub(crate) products: f64,
    /// Of attention over keys and values.
    pub(crate) attention: f64,
}

/// How fast passes have been.
#[derive(Clone, Debug, Default)]
pub(crate) struct Speed {
    /// The first pass, which touches buffers and weights for the first time: it counts where there is no other.
    first: Option<Pass>,
    /// The latest of the others.
    latest: VecDeque<Pass>,
}

/// What a pass took.
#[derive(Clone, Copy, Debug)]
struct Pass {
    work: Operations,
    seconds: f64,
}

/// Passes that are remembered: all pairs of them are looked at.
const REMEMBERED: usize = 128;

/// How much more attention, for each operation of products, one pass of a pair must have than the other to tell the
/// two speeds apart, as a share of what passes have.
const APART: f64 = 0.05;

impl Operations {
    /// Those of a pass of `rows` rows after `depth` tokens, without logits.
    pub(crate) fn of_pass(blueprint: &Blueprint, rows: usize, depth: usize, weights: u64) -> Self {
        let (rows, depth) = (rows as f64, depth as f64);
        Operations {
            products: 2.0 * weights as f64 * rows,
            // A row sees what was there and half of its own pass, in all layers but the last, which is read for
            // its keys and values.
            attention: 4.0 * channels(before_last(blueprint)) * rows * (depth + rows / 2.0),
        }
    }

    /// Those of seeing once more what `rows` rows attend to among `width` tokens: queries by keys only.
    pub(crate) fn of_watching(blueprint: &Blueprint, rows: usize, width: usize) -> Self {
        Operations {
            products: 0.0,
            attention: 2.0 * channels(&blueprint.layers) * rows as f64 * width as f64,
        }
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Operations {
            products: self.products + other.products,
            attention: self.attention + other.attention,
        }
    }
}

impl Speed {
    /// Takes in that a pass took so long.
    pub(crate) fn learn(&mut self, work: Operations, took: Duration) {
        let pass = Pass {
            work,
            seconds: took.as_secs_f64(),
        };
        if self.first.is_none() {
            self.first = Some(pass);
            return;
        }
        if self.latest.len() == REMEMBERED {
            self.latest.pop_front();
        }
        self.latest.push_back(pass);
    }

    /// How long `work` takes at this speed; `None` before anything was measured. A pass that something else
    /// disturbed says nothing: speeds are medians of what passes and pairs of them say (Theil and Sen).
    pub(crate) fn predict(&self, work: Operations) -> Option<Duration> {
        let passes = self.full();
        let seconds = match speeds(&passes) {
            Some((product, attention)) => product * work.products + attention * work.attention,
            // Passes of about one depth do not tell the two apart.
            None => {
                let all = |work: Operations| work.products + work.attention;
                let of_one = passes.iter().map(|pass| pass.seconds / all(pass.work));
                median(of_one.collect())? * all(work)
            }
        };
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// The passes that count: of at least half the rows of the largest, as those of few rows read all weights for
    /// them.
    fn full(&self) -> Vec<Pass> {
        let first = self.first.filter(|_| self.latest.is_empty());
        let passes = || first.iter().chain(&self.latest);
        let most = passes().map(|pass| pass.work.products).fold(0.0, f64::max);
        let is_full = |pass: &&Pass| 2.0 * pass.work.products >= most;
        passes().filter(is_full).copied().collect()
    }
}

/// Seconds an operation of products takes and one of attention.
fn speeds(passes: &[Pass]) -> Option<(f64, f64)> {
    // Seconds for each operation of products, by how much attention comes with it: on a line.
    let points: Vec<(f64, f64)> = passes
        .iter()
        .map(|&Pass { work, seconds }| (work.attention / work.products, seconds / work.products))
        .collect();
    let usual = median(points.iter().map(|&(share, _)| share).collect())?;
    let mut slopes = Vec::new();
    for (at, one) in points.iter().enumerate() {
        for other in &points[..at] {
            let more = one.0 - other.0;
            if more.abs() > APART * usual {
                slopes.push((one.1 - other.1) / more);
            }
        }
    }
    let attention = median(slopes)?;
    let product = median(points.iter().map(|(x, y)| y - attention * x).collect())?;
    (attention > 0.0 && product > 0.0).then_some((product, attention))
}

/// The one in the middle, the upper one of two.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn before_last(blueprint: &Blueprint) -> &[LayerBlueprint] {
    let layers = &blueprint.layers;
    &layers[..layers.len().saturating_sub(1)]
}

/// Channels of all query heads of those of `layers` that attend to everything.
fn channels(layers: &[LayerBlueprint]) -> f64 {
    let of_layer = |mixer: &Mixer| match mixer {
        Mixer::Attention(AttentionBlueprint {
            heads,
            head_dim,
            window: None,
            ..
        }) => heads * head_dim,
        _ => 0,
    };
    let layers = layers.iter();
    layers.map(|layer| of_layer(&layer.mixer)).sum::<usize>() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(products: f64, attention: f64) -> Operations {
        Operations {
            products,
            attention,
        }
    }

    #[test]
    fn two_speeds_are_told_apart_by_passes_of_different_depth() {
        let seconds = |work: Operations| 2e-9 * work.products + 5e-9 * work.attention;
        let mut speed = Speed::default();
        assert_eq!(speed.predict(work(1.0, 1.0)), None);
        // The first pass takes longer than its work.
        speed.learn(work(1e8, 0.0), Duration::from_secs(9));
        for depth in 0..8 {
            let pass = work(1e8, 1e7 * f64::from(depth));
            // Somebody else computed beside two of them.
            let disturbed = if depth % 5 == 1 { 1.5 } else { 1.0 };
            speed.learn(pass, Duration::from_secs_f64(disturbed * seconds(pass)));
            // A short one reads all weights for few rows.
            speed.learn(work(1e7, 1e6), Duration::from_millis(150));
        }
        let asked = work(3e8, 2e9);
        let predicted = speed.predict(asked).unwrap().as_secs_f64();
        assert!(
            (predicted / seconds(asked) - 1.0).abs() < 1e-6,
            "{predicted}"
        );
    }

    #[test]
    fn what_was_disturbed_is_forgotten_in_time_and_one_depth_gives_one_speed() {
        let mut speed = Speed::default();
        for seconds in std::iter::repeat_n(7, 200).chain(std::iter::repeat_n(2, REMEMBERED)) {
            speed.learn(work(6e8, 4e8), Duration::from_secs(seconds));
        }
        speed.learn(work(6e8, 4e8), Duration::from_secs(9));
        assert_eq!(speed.predict(work(1e9, 1e9)), Some(Duration::from_secs(4)));
    }

    #[test]
    fn one_pass_gives_one_speed() {
        let mut speed = Speed::default();
        speed.learn(work(6e8, 4e8), Duration::from_secs(1));
        assert_eq!(speed.predict(work(1e9, 1e9)), Some(Duration::from_secs(2)));
    }
}
