//! One plain function, compiled once for each instruction set.

/// Makes `$name(isa, …)` of the plain function `$body`, which is `#[inline(always)]`: the same
/// operations in the same order in wider registers, so the same bits. For functions whose loops the
/// compiler turns into vector code by itself.
macro_rules! for_each_isa {
    (
        $(#[$about:meta])*
        $visibility:vis $name:ident, $body:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?
    ) => {
        $(#[$about])*
        $visibility fn $name(isa: $crate::isa::Isa, $($arg: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::isa::Isa;
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $type),*) $(-> $result)? {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) $(-> $result)? {
                    $body($($arg),*)
                }
                match isa {
                    Isa::Avx512 | Isa::Amx if isa.is_available() => {
                        // SAFETY: the processor was just asked whether it has the features.
                        return unsafe { avx512($($arg),*) };
                    }
                    Isa::Avx2 | Isa::AvxVnni if isa.is_available() => {
                        // SAFETY: as above.
                        return unsafe { avx2($($arg),*) };
                    }
                    _ => {}
                }
            }
            let _ = isa;
            $body($($arg),*)
        }
    };
}
pub(crate) use for_each_isa;
