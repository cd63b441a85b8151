//! Which instruction set the kernels use, chosen once at run time.

use std::fmt;
use std::str::FromStr;

/// An instruction set that the kernels have a version for, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Portable Rust; the definition that every other version is tested against.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F/BW/DQ/VL and VNNI.
    Avx512,
}

/// The instruction set asked for is unknown or not offered by this processor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// The name is none of ours.
    #[error("unknown instruction set {0:?}: use one of scalar, avx2, avx512")]
    Unknown(String),
    /// The processor lacks it.
    #[error("this processor does not offer {0}: leave LONGVIEW_ISA unset, or use {1}")]
    Missing(Isa, Isa),
}

impl Isa {
    /// Every instruction set this processor can run, weakest first.
    pub fn available() -> Vec<Isa> {
        [Isa::Scalar, Isa::Avx2, Isa::Avx512]
            .into_iter()
            .filter(|isa| isa.is_available())
            .collect()
    }

    /// The strongest instruction set of this processor.
    pub fn best() -> Isa {
        if Isa::Avx512.is_available() {
            Isa::Avx512
        } else if Isa::Avx2.is_available() {
            Isa::Avx2
        } else {
            Isa::Scalar
        }
    }

    /// The instruction set named by the environment variable `LONGVIEW_ISA`, or the best one.
    ///
    /// # Errors
    /// When the variable names an unknown instruction set, or one this processor lacks.
    pub fn from_environment() -> Result<Isa, IsaError> {
        match std::env::var("LONGVIEW_ISA") {
            Ok(name) if !name.is_empty() => {
                let isa: Isa = name.parse()?;
                if isa.is_available() {
                    Ok(isa)
                } else {
                    Err(IsaError::Missing(isa, Isa::best()))
                }
            }
            _ => Ok(Isa::best()),
        }
    }

    /// Whether this processor can run it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        })
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    fn from_str(name: &str) -> Result<Isa, IsaError> {
        match name.to_ascii_lowercase().as_str() {
            "scalar" => Ok(Isa::Scalar),
            "avx2" => Ok(Isa::Avx2),
            "avx512" => Ok(Isa::Avx512),
            _ => Err(IsaError::Unknown(name.to_owned())),
        }
    }
}

/// How a model is computed: the roundings that the exact path is allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Numerics {
    /// Weights as in the file; activations in int8 blocks of 32 where weights are quantised; KV
    /// cache in f16.
    #[default]
    Default,
    /// Weights as in the file; activations and KV cache in f32.
    F32,
}

impl fmt::Display for Numerics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Numerics::Default => "default",
            Numerics::F32 => "f32",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_scalar_is_always_there() {
        for isa in [Isa::Scalar, Isa::Avx2, Isa::Avx512] {
            assert_eq!(isa.to_string().parse::<Isa>(), Ok(isa));
        }
        assert!(Isa::available().contains(&Isa::Scalar));
        assert_eq!(Isa::available().last(), Some(&Isa::best()));
        assert!(
            "sse9"
                .parse::<Isa>()
                .unwrap_err()
                .to_string()
                .contains("sse9")
        );
    }
}
