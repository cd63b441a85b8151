//! Paper: <https://arxiv.org/abs/2406.18139> (Wan et al., LOOK-M: Look-Once Optimization in KV Cache
//! for Efficient Multimodal Long-Context Inference, 2024).
//!
//! Every evicted pair is merged into the kept one whose key is most like its own. `pivotal` takes the
//! mean of the kept pair and of each evicted one's midpoint with it, which keeps it near where it
//! was; `averaged` takes the plain mean; `weighted` leaves out those less alike than the mean and
//! scales the others by their cosine. The published averaging code merges into the wrong pairs; this
//! follows the paper's formulas. The mean that `weighted` compares with is of a head's own pairs, where the
//! paper averages over heads. Without images the published code scores by sums of attention and keeps the
//! first 4 tokens in any case: `h2o(sinks=4, merge=look-m)`. With images, of which the library is told by
//! `Context::mark_images`, pairs of text stay before any of an image, and those by score: the text prior, in
//! its strict form, where text that exceeds the budget goes too. As text the method knows of none.

use longview_kv::keep::{LeavesFirst, Merge, Merging, Pairs};

use super::{KEYS, Keys, Nearest, blend, blend_bytes, nearest, nearest_bytes};
use crate::method::{Build, Domain, Method, Parameter, Stage};

/// `look-m(rule, keys)`.
pub(crate) const METHOD: Method = Method {
    stage: Stage::Keep,
    name: "look-m",
    exact: false,
    paper: Some("https://arxiv.org/abs/2406.18139"),
    claim: Some("80 % less memory at equal quality, for text with images"),
    doc: "every evicted pair is merged into the kept one that is most like it",
    parameters: &[
        Parameter {
            name: "rule",
            default: "pivotal",
            unit: "",
            doc: "how pairs are averaged",
            domain: Domain::Word(&["pivotal", "averaged", "weighted"]),
        },
        KEYS,
    ],
    build: Build::Merge(|arguments| {
        Box::new(LookM {
            rule: match arguments.word("rule") {
                "averaged" => Rule::Averaged,
                "weighted" => Rule::Weighted,
                _ => Rule::Pivotal,
            },
            keys: Keys::of(arguments),
        })
    }),
};

struct LookM {
    rule: Rule,
    keys: Keys,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    Averaged,
    Pivotal,
    Weighted,
}

impl Merge for LookM {
    fn leaves_first(&self) -> LeavesFirst {
        LeavesFirst::Images
    }

    fn scratch(&self, gone: usize, kept: usize, head_dim: usize) -> usize {
        nearest_bytes(kept, head_dim) + blend_bytes(gone, kept, head_dim)
    }

    fn merge(&self, gone: &Pairs, kept: &mut Pairs, with: &mut Merging<'_>) {
        let near = nearest(with.isa, gone, kept);
        let mean = near.iter().map(|to| to.cosine).sum::<f32>() / near.len().max(1) as f32;
        let joins = |to: &Nearest| self.rule != Rule::Weighted || to.cosine >= mean - 1e-6;
        let to: Vec<_> = near
            .into_iter()
            .map(|to| joins(&to).then_some(to))
            .collect();
        let shares = |_: usize, members: &[(usize, f32)]| {
            let count = members.len() as f32;
            let all = count + 1.0;
            match self.rule {
                Rule::Averaged => (1.0 / all, vec![1.0 / all; members.len()]),
                Rule::Pivotal => ((1.0 + count / 2.0) / all, vec![0.5 / all; members.len()]),
                Rule::Weighted => (1.0 / all, members.iter().map(|(_, c)| c / all).collect()),
            }
        };
        blend(gone, kept, &to, self.keys, &shares, with.turn);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::Toy;
    use super::super::tests::{self, pairs};
    use super::*;

    fn merged(rule: Rule, gone: &[(u32, [f32; 2])]) -> Pairs {
        let mut kept = pairs(&[(0, [1.0, 0.0]), (9, [0.0, 1.0])]);
        let merge = LookM {
            rule,
            keys: Keys::Cached,
        };
        tests::merged(&merge, &pairs(gone), &mut kept, &mut None);
        kept
    }

    #[test]
    fn images_leave_before_text_and_are_merged_into_what_stays() {
        // Small keys stay under knorm: here those of the image, tokens 2 to 5.
        let norms = [5.0, 6.0, 1.0, 2.0, 3.0, 4.0, 7.0, 8.0];
        let kept = |budget: usize, images: &[std::ops::Range<usize>]| {
            let mut toy = Toy::new(1, 1, 2);
            toy.keep(
                &format!("knorm(budget={budget}, sinks=0, recent=1, merge=look-m)"),
                norms.len(),
            );
            if !images.is_empty() {
                toy.context.mark_images(images.to_vec()).unwrap();
            }
            toy.read_keys(&norms.map(|norm| [norm, 0.0]));
            toy.compress();
            (toy.positions(0, 0), toy.keys(0))
        };
        assert_eq!(kept(4, &[]).0, [2, 3, 4, 7]);
        let image = [2..4, 4..6];
        assert_eq!(kept(3, &image).0, [0, 1, 7]);
        // All text stays, and of the image what scores best.
        assert_eq!(kept(6, &image).0, [0, 1, 2, 3, 6, 7]);
        let (positions, keys) = kept(4, &image);
        assert_eq!(positions, [0, 1, 6, 7]);
        // All keys point the same way, so all four went to the first: (1 + 4/2)/5 · 5 + 0.5/5 · (1+2+3+4).
        assert!((keys[0][0] - 4.0).abs() < 1e-6, "{keys:?}");
        assert_eq!(keys[1..], [[6.0, 0.0], [7.0, 0.0], [8.0, 0.0]]);
        // The newest token stays, whatever it is of.
        assert_eq!(kept(3, &[5..6, 6..9]).0, [2, 3, 7]);
    }

    #[test]
    fn a_mask_that_nobody_would_heed_is_refused() {
        let mut toy = Toy::new(1, 1, 2);
        let image = || vec![0..2, 2..3];
        let refused =
            |toy: &mut Toy, spans| toy.context.mark_images(spans).unwrap_err().to_string();
        assert!(refused(&mut toy, image()).contains("merge=look-m"));
        toy.keep("knorm(budget=4, sinks=0, recent=1, merge=d2o)", 8);
        assert!(refused(&mut toy, image()).contains("merge=look-m"));
        toy.keep("knorm(budget=4, sinks=0, recent=1, merge=look-m)", 8);
        assert!(refused(&mut toy, vec![3..5, 1..2]).contains("must ascend"));
        toy.context.mark_images(image()).unwrap();
    }

    #[test]
    fn rules_by_hand() {
        let gone = [(1, [3.0, 0.0])];
        assert_eq!(merged(Rule::Averaged, &gone).key(0), [2.0, 0.0]);
        assert_eq!(merged(Rule::Pivotal, &gone).key(0), [1.5, 0.0]);
        assert_eq!(merged(Rule::Weighted, &gone).key(0), [2.0, 0.0]);
        // Nothing comes to the other: not a bit of it changes.
        assert_eq!(merged(Rule::Pivotal, &gone).key(1), [0.0, 1.0]);
        // Copies of a kept pair leave it.
        let copies = [(1, [1.0, 0.0]), (2, [1.0, 0.0])];
        assert_eq!(merged(Rule::Averaged, &copies).key(0), [1.0, 0.0]);
    }
}
