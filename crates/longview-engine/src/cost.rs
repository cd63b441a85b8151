//! What passes cost in operations, and how long such work takes as measured on this machine.

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
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Speed {
    /// The first pass, which touches buffers and weights for the first time: it counts where there is no other.
    first: Option<(Operations, Duration)>,
    /// Sums over passes of products of the two counts and the seconds, for the method of least squares.
    pp: f64,
    pa: f64,
    aa: f64,
    pt: f64,
    at: f64,
    all: Operations,
    seconds: f64,
}

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
        if self.first.is_none() {
            self.first = Some((work, took));
            return;
        }
        let Operations {
            products: p,
            attention: a,
        } = work;
        let t = took.as_secs_f64();
        // By the share of each: otherwise the longest passes alone would count.
        let weight = 1.0 / t.max(1e-9);
        self.pp += weight * p * p;
        self.pa += weight * p * a;
        self.aa += weight * a * a;
        self.pt += weight * p * t;
        self.at += weight * a * t;
        self.all = self.all.and(work);
        self.seconds += t;
    }

    /// How long `work` takes at this speed; `None` before anything was measured.
    pub(crate) fn predict(&self, work: Operations) -> Option<Duration> {
        let all = self.all.products + self.all.attention;
        if all <= 0.0 {
            let (first, took) = self.first?;
            let share = (work.products + work.attention) / (first.products + first.attention);
            return Duration::try_from_secs_f64(share * took.as_secs_f64()).ok();
        }
        let determinant = self.pp * self.aa - self.pa * self.pa;
        let (product, attention) = (
            (self.pt * self.aa - self.at * self.pa) / determinant,
            (self.at * self.pp - self.pt * self.pa) / determinant,
        );
        // Passes of about one depth do not tell the two speeds apart.
        let apart = determinant > 1e-6 * self.pp * self.aa && product > 0.0 && attention > 0.0;
        let seconds = match apart {
            true => product * work.products + attention * work.attention,
            false => self.seconds / all * (work.products + work.attention),
        };
        Duration::try_from_secs_f64(seconds).ok()
    }
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
            speed.learn(pass, Duration::from_secs_f64(seconds(pass)));
        }
        let asked = work(3e8, 2e9);
        let predicted = speed.predict(asked).unwrap().as_secs_f64();
        assert!(
            (predicted / seconds(asked) - 1.0).abs() < 1e-6,
            "{predicted}"
        );
    }

    #[test]
    fn one_pass_gives_one_speed() {
        let mut speed = Speed::default();
        speed.learn(work(6e8, 4e8), Duration::from_secs(1));
        assert_eq!(speed.predict(work(1e9, 1e9)), Some(Duration::from_secs(2)));
    }
}
