//! Which format each tensor of a quantised model gets.

use std::fmt;
use std::str::FromStr;

use longview_kernels::Format;

use super::inventory::{Entry, Part};
use crate::names::Role;

/// A mixture of tensor formats under the name that GGUF files are shared by.
///
/// Norms, biases, routers and what rules the states of gated delta layers stay in f32 in every
/// mixture. The quantised mixtures give more bits
/// to the tensors whose errors cost most: the one that makes the logits, and in the `_K_M`
/// mixtures half of the value and down projections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(non_camel_case_types)]
pub enum Recipe {
    /// Every matrix in 32-bit floats.
    F32,
    /// Every matrix in 16-bit floats with 5 bits of exponent.
    F16,
    /// Every matrix in 16-bit floats with 8 bits of exponent.
    BF16,
    /// 8-bit blocks throughout.
    Q8_0,
    /// 6-bit blocks throughout.
    Q6_K,
    /// 5-bit blocks, 6-bit where it matters most.
    Q5_K_M,
    /// 4-bit blocks, 6-bit where it matters most.
    Q4_K_M,
    /// The simplest 4-bit blocks, 6-bit for the logits.
    Q4_0,
}

/// One row a recipe: its name, the number of `general.file_type`, and the format most tensors get.
const TABLE: [(Recipe, &str, u32, Format); 8] = [
    (Recipe::F32, "F32", 0, Format::F32),
    (Recipe::F16, "F16", 1, Format::F16),
    (Recipe::BF16, "BF16", 32, Format::BF16),
    (Recipe::Q8_0, "Q8_0", 7, Format::Q8_0),
    (Recipe::Q6_K, "Q6_K", 18, Format::Q6_K),
    (Recipe::Q5_K_M, "Q5_K_M", 17, Format::Q5_K),
    (Recipe::Q4_K_M, "Q4_K_M", 15, Format::Q4_K),
    (Recipe::Q4_0, "Q4_0", 2, Format::Q4_0),
];

/// The number of experts for which the mixtures have rules of their own (Mixtral 8x7B).
const EIGHT_EXPERTS: usize = 8;

/// What a recipe looks at besides the tensor itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Model {
    /// Layers in all.
    pub(crate) layers: usize,
    /// Experts of a layer; 0 where there are none.
    pub(crate) experts: usize,
    /// Whether the embedding also makes the logits.
    pub(crate) tied: bool,
}

impl Recipe {
    /// Every recipe, the most exact first.
    pub const ALL: [Recipe; 8] = [
        Recipe::F32,
        Recipe::F16,
        Recipe::BF16,
        Recipe::Q8_0,
        Recipe::Q6_K,
        Recipe::Q5_K_M,
        Recipe::Q4_K_M,
        Recipe::Q4_0,
    ];

    /// The name, such as `Q4_K_M`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The number that `general.file_type` holds.
    pub fn file_type(self) -> u32 {
        self.row().2
    }

    /// The format most matrices get.
    pub fn base(self) -> Format {
        self.row().3
    }

    /// The format of a tensor.
    pub(crate) fn format(self, entry: &Entry, model: Model) -> Format {
        let small = matches!(
            entry.role,
            Role::Router
                | Role::DeltaConv
                | Role::DeltaBeta
                | Role::DeltaAlpha
                | Role::DeltaBetaAlpha
        );
        if entry.shape.len() < 2 || entry.part == Part::Bias || small {
            return Format::F32;
        }
        let wanted = if self.base().is_float() {
            self.base()
        } else {
            self.mixed(entry, model)
        };
        fitting(wanted, *entry.shape.last().unwrap_or(&1))
    }

    fn mixed(self, entry: &Entry, model: Model) -> Format {
        let base = self.base();
        let has_mixture = matches!(self, Recipe::Q4_K_M | Recipe::Q5_K_M);
        let eight = model.experts == EIGHT_EXPERTS;
        let makes_logits =
            entry.role == Role::Output || (entry.role == Role::TokenEmbedding && model.tied);
        match entry.role {
            _ if makes_logits && base != Format::Q8_0 => Format::Q6_K,
            // With eight experts the attention is a small part of the model, and worth more bits.
            Role::Value | Role::Key if eight => Format::Q8_0,
            Role::AttentionOutput if eight && self == Recipe::Q4_K_M => Format::Q5_K,
            Role::Value | Role::QueryKeyValue | Role::Down | Role::ExpertDown
                if has_mixture && more_bits(entry.layer, model.layers) =>
            {
                Format::Q6_K
            }
            _ => base,
        }
    }

    fn row(self) -> &'static (Recipe, &'static str, u32, Format) {
        TABLE
            .iter()
            .find(|row| row.0 == self)
            .expect("every recipe has its row in the table")
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Recipe {
    type Err = String;

    fn from_str(name: &str) -> Result<Recipe, String> {
        Recipe::ALL
            .into_iter()
            .find(|recipe| recipe.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| {
                let known = Recipe::ALL.map(Recipe::name).join(", ");
                format!("unknown type {name:?}; known types: {known}")
            })
    }
}

/// Whether a layer's sensitive tensors get more bits: those of the first and the last eighth, and
/// of every third layer between.
fn more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// `wanted`, or what stands in for it where rows of `k` elements do not fill its blocks.
fn fitting(wanted: Format, k: usize) -> Format {
    let fits = |format: Format| k.is_multiple_of(format.block_len());
    if fits(wanted) {
        return wanted;
    }
    let smaller = match wanted {
        Format::Q4_K => Format::Q5_0,
        Format::Q5_K => Format::Q5_1,
        Format::Q6_K => Format::Q8_0,
        other => other,
    };
    if fits(smaller) { smaller } else { Format::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(role: Role, layer: usize, shape: &[usize]) -> Entry {
        Entry {
            role,
            layer,
            part: Part::Weight,
            shape: shape.to_vec(),
        }
    }

    const LLAMA: Model = Model {
        layers: 32,
        experts: 0,
        tied: false,
    };

    #[test]
    fn names_are_read_in_any_case_and_unknown_ones_refused_with_the_known() {
        for recipe in Recipe::ALL {
            assert_eq!(recipe.name().to_lowercase().parse(), Ok(recipe));
        }
        let error = "q3_k_xs".parse::<Recipe>().unwrap_err();
        assert!(
            error.contains("q3_k_xs") && error.contains("Q4_K_M"),
            "{error}"
        );
    }

    #[test]
    fn half_of_the_sensitive_layers_get_more_bits() {
        // For 32 layers: 0–3, then 6, 9, 12 … 27, and 28–31.
        let more: Vec<usize> = (0..32).filter(|&layer| more_bits(layer, 32)).collect();
        assert_eq!(
            more,
            [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
        );
    }

    #[test]
    fn mixtures_follow_the_usual_rules() {
        let format =
            |recipe: Recipe, role, layer| recipe.format(&entry(role, layer, &[4096, 4096]), LLAMA);
        assert_eq!(format(Recipe::Q4_K_M, Role::Value, 0), Format::Q6_K);
        assert_eq!(format(Recipe::Q4_K_M, Role::Value, 4), Format::Q4_K);
        assert_eq!(format(Recipe::Q4_K_M, Role::Down, 6), Format::Q6_K);
        assert_eq!(format(Recipe::Q4_K_M, Role::Query, 0), Format::Q4_K);
        assert_eq!(format(Recipe::Q4_K_M, Role::Output, 0), Format::Q6_K);
        assert_eq!(
            format(Recipe::Q4_K_M, Role::TokenEmbedding, 0),
            Format::Q4_K
        );
        assert_eq!(format(Recipe::Q4_K_M, Role::QueryKeyValue, 5), Format::Q4_K);
        assert_eq!(format(Recipe::Q5_K_M, Role::QueryKeyValue, 6), Format::Q6_K);
        assert_eq!(format(Recipe::Q4_0, Role::Value, 0), Format::Q4_0);
        assert_eq!(format(Recipe::Q4_0, Role::Output, 0), Format::Q6_K);
        assert_eq!(format(Recipe::Q8_0, Role::Output, 0), Format::Q8_0);
        assert_eq!(format(Recipe::F16, Role::Output, 0), Format::F16);

        let tied = Model {
            tied: true,
            ..LLAMA
        };
        let embedding = entry(Role::TokenEmbedding, 0, &[1000, 256]);
        assert_eq!(Recipe::Q4_0.format(&embedding, tied), Format::Q6_K);

        let mixtral = Model {
            experts: 8,
            ..LLAMA
        };
        let key = entry(Role::Key, 9, &[1024, 4096]);
        assert_eq!(Recipe::Q4_K_M.format(&key, mixtral), Format::Q8_0);
        let down = entry(Role::ExpertDown, 9, &[8, 4096, 14336]);
        assert_eq!(Recipe::Q4_K_M.format(&down, mixtral), Format::Q6_K);
    }

    #[test]
    fn small_tensors_stay_in_f32_and_odd_rows_fall_back() {
        let norm = entry(Role::OutputNorm, 0, &[4096]);
        assert_eq!(Recipe::Q4_0.format(&norm, LLAMA), Format::F32);
        let router = entry(Role::Router, 0, &[8, 4096]);
        assert_eq!(Recipe::F16.format(&router, LLAMA), Format::F32);
        let bias = Entry {
            part: Part::Bias,
            ..entry(Role::Query, 0, &[4096])
        };
        assert_eq!(Recipe::Q8_0.format(&bias, LLAMA), Format::F32);
        let rows_of = |recipe: Recipe, k| recipe.format(&entry(Role::Up, 5, &[64, k]), LLAMA);
        assert_eq!(rows_of(Recipe::Q4_K_M, 896), Format::Q5_0);
        assert_eq!(rows_of(Recipe::Q5_K_M, 896), Format::Q5_1);
        assert_eq!(rows_of(Recipe::Q6_K, 896), Format::Q8_0);
        assert_eq!(rows_of(Recipe::Q4_0, 48), Format::F16);
    }
}
