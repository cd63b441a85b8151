//! Which instruction set the kernels use, chosen once at run time.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// An instruction set that the kernels have a version for, weakest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Portable Rust; the definition that every other version is tested against.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// The same with the 8-bit dot products of AVX-VNNI.
    AvxVnni,
    /// x86-64 with AVX-512 F/BW/DQ/VL and VNNI.
    Avx512,
    /// The same with the tiles of AMX: for 8-bit products of many rows, to the bits of [`Isa::Avx512`], and for
    /// attention over f16 pages.
    Amx,
    /// 64-bit ARM with NEON, which all of them have.
    Neon,
    /// NEON and its four-way 8-bit dot product (ARMv8.2 `dotprod`).
    NeonDotprod,
    /// The same and its 8-bit matrix product (ARMv8.6 `i8mm`).
    NeonI8mm,
}

/// The instruction set asked for is unknown or not offered by this processor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// The name is none of ours.
    #[error("unknown instruction set {0:?}: use one of {names}", names = names())]
    Unknown(String),
    /// The processor lacks it.
    #[error("this processor does not offer {0}: leave LONGVIEW_ISA unset, or use {1}")]
    Missing(Isa, Isa),
}

impl Isa {
    /// Every instruction set there is a version for, weakest first.
    pub const ALL: [Isa; 8] = [
        Isa::Scalar,
        Isa::Avx2,
        Isa::AvxVnni,
        Isa::Avx512,
        Isa::Amx,
        Isa::Neon,
        Isa::NeonDotprod,
        Isa::NeonI8mm,
    ];

    /// Every instruction set this processor can run, weakest first.
    pub fn available() -> Vec<Isa> {
        Isa::ALL
            .into_iter()
            .filter(|isa| isa.is_available())
            .collect()
    }

    /// The strongest instruction set of this processor.
    pub fn best() -> Isa {
        let strongest = Isa::ALL.into_iter().rev().find(|isa| isa.is_available());
        strongest.unwrap_or(Isa::Scalar)
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

    /// Rows that products with quantised weights take at once at most: their activations stay in the
    /// second-level cache. More are taken in parts of about equal size, for each of which weights are
    /// unpacked anew.
    pub fn rows_together(self) -> usize {
        match self {
            Isa::Amx => 256,
            _ => 192,
        }
    }

    /// Whether this processor can run it; kernels ask that at every call.
    pub fn is_available(self) -> bool {
        static OFFERED: OnceLock<[bool; Isa::ALL.len()]> = OnceLock::new();
        OFFERED.get_or_init(|| Isa::ALL.map(Isa::is_offered))[self as usize]
    }

    fn is_offered(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Isa::Avx2.is_offered() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_offered()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Isa::Amx => Isa::Avx512.is_offered() && tiles_are_granted(),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => {
                Isa::Neon.is_offered() && std::arch::is_aarch64_feature_detected!("dotprod")
            }
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => {
                Isa::NeonDotprod.is_offered() && std::arch::is_aarch64_feature_detected!("i8mm")
            }
            // Those of other architectures.
            _ => false,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
            Isa::Neon => "neon",
            Isa::NeonDotprod => "neon-dotprod",
            Isa::NeonI8mm => "neon-i8mm",
        })
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    fn from_str(name: &str) -> Result<Isa, IsaError> {
        let asked = name.to_ascii_lowercase();
        let known = Isa::ALL.into_iter().find(|isa| isa.to_string() == asked);
        known.ok_or_else(|| IsaError::Unknown(name.to_owned()))
    }
}

/// Whether the processor reads memory fastest where one stream is read after the other: what Zen 4 fetches by
/// itself goes astray between several. (Zen 5 and Intel's get more from several side by side.)
#[cfg(target_arch = "x86_64")]
pub(crate) fn prefers_one_stream() -> bool {
    use std::arch::x86_64::__cpuid;

    /// Family 25: Zen 3 and Zen 4.
    const FAMILY: u32 = 25;

    static ZEN_4: OnceLock<bool> = OnceLock::new();
    *ZEN_4.get_or_init(|| {
        let vendor = __cpuid(0);
        let named = [vendor.ebx, vendor.edx, vendor.ecx]
            .map(u32::to_le_bytes)
            .concat();
        let version = __cpuid(1).eax;
        let family = (version >> 8 & 15) + (version >> 20 & 255);
        named == b"AuthenticAMD" && family == FAMILY
    })
}

/// Whether the processor has tiles for products of bytes and of bf16 and the system lets this process use them,
/// which it has to be asked for once.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn tiles_are_granted() -> bool {
    use std::arch::x86_64::__cpuid_count;

    /// Features of leaf 7 in `edx`: products of bf16, tiles, and products of bytes.
    const TILES: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    /// `ARCH_REQ_XCOMP_PERM` of arch_prctl, and the state of the tiles.
    const ASK: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;

    let has_tiles = __cpuid_count(7, 0).edx & TILES == TILES;
    // SAFETY: the call changes nothing but what this process may use; a system that does not know it
    // returns an error.
    has_tiles && unsafe { libc::syscall(libc::SYS_arch_prctl, ASK, TILE_DATA) } == 0
}

/// All names, for messages.
fn names() -> String {
    Isa::ALL.map(|isa| isa.to_string()).join(", ")
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
        for (at, isa) in Isa::ALL.into_iter().enumerate() {
            assert_eq!(isa as usize, at, "availability is looked up by number");
            assert_eq!(isa.to_string().parse::<Isa>(), Ok(isa));
        }
        assert!(Isa::available().contains(&Isa::Scalar));
        assert_eq!(Isa::available().last(), Some(&Isa::best()));
        let message = "sse9".parse::<Isa>().unwrap_err().to_string();
        assert!(message.contains("sse9") && message.contains("avx2, avxvnni, avx512, amx, neon"));
    }
}
