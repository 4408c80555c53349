//! Which instruction set runs, and the macro that compiles a kernel once for each.

/// Instruction set of the kernels; all give the same bits in forward operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Portable code.
    Scalar,
    /// AVX2 and FMA on x86-64.
    Avx2,
    /// AVX-512 F on x86-64, AVX2 and FMA beside it.
    Avx512,
}

impl Isa {
    /// All, the best last.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512];

    /// The best that this processor has, capped by the environment variable `FOLGORE_ISA` (`scalar`, `avx2` or `avx512`; other
    /// values do not cap).
    pub fn best() -> Self {
        let cap = std::env::var("FOLGORE_ISA").unwrap_or_default();
        Self::ALL.into_iter().find(|isa| isa.name() == cap).unwrap_or(Self::Avx512).available()
    }

    /// `self` where the processor has it, otherwise the best below.
    pub fn available(self) -> Self {
        #[cfg(target_arch = "x86_64")]
        if self >= Self::Avx2 && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return if is_x86_feature_detected!("avx512f") { self } else { Self::Avx2 };
        }
        Self::Scalar
    }

    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }
}

/// An [`Isa`] that the processor was seen to have: only [`Checked::new`] makes one, so kernels may trust it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checked(Isa);

impl Checked {
    pub(crate) fn new(wanted: Isa) -> Self {
        Self(wanted.available())
    }

    pub(crate) fn isa(self) -> Isa {
        self.0
    }
}

/// Makes `fn name(isa: Checked, args) -> result` that runs `body(simd, args)`, an `#[inline(always)]` function generic over
/// [`crate::backend::cpu::simd::Simd`], compiled for the instruction set `isa`. With `unsafe fn`, calling is as unsafe as
/// the body.
macro_rules! kernel {
    ($vis:vis fn $name:ident = $body:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)?) => {
        $vis fn $name(isa: $crate::backend::cpu::isa::Checked, $($arg: $ty),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $out)? {
                // SAFETY: this function is only called where the instruction set was detected.
                $body(unsafe { $crate::backend::cpu::avx2::Avx2::new() }, $($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma")]
            fn avx512($($arg: $ty),*) $(-> $out)? {
                // SAFETY: this function is only called where the instruction set was detected.
                $body(unsafe { $crate::backend::cpu::avx512::Avx512::new() }, $($arg),*)
            }
            match isa.isa() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: a `Checked` holds Avx2 only after detection.
                $crate::backend::cpu::Isa::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: likewise.
                $crate::backend::cpu::Isa::Avx512 => unsafe { avx512($($arg),*) },
                _ => $body($crate::backend::cpu::simd::Scalar, $($arg),*),
            }
        }
    };
    ($vis:vis unsafe fn $name:ident = $body:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)?) => {
        /// # Safety
        /// As the generic body says.
        $vis unsafe fn $name(isa: $crate::backend::cpu::isa::Checked, $($arg: $ty),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($arg: $ty),*) $(-> $out)? {
                // SAFETY: this function is only called where the instruction set was detected; the rest is the caller's.
                unsafe { $body($crate::backend::cpu::avx2::Avx2::new(), $($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma")]
            unsafe fn avx512($($arg: $ty),*) $(-> $out)? {
                // SAFETY: as above.
                unsafe { $body($crate::backend::cpu::avx512::Avx512::new(), $($arg),*) }
            }
            match isa.isa() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: a `Checked` holds Avx2 only after detection; the rest is the caller's promise.
                $crate::backend::cpu::Isa::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: likewise.
                $crate::backend::cpu::Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: the caller's promise.
                _ => unsafe { $body($crate::backend::cpu::simd::Scalar, $($arg),*) },
            }
        }
    };
}
pub(crate) use kernel;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_is_no_better_than_what_was_asked_for() {
        for isa in Isa::ALL {
            let available = isa.available();
            assert!(available <= isa && available.available() == available, "{isa:?} gives {available:?}");
        }
        assert_eq!(Isa::Scalar.available(), Isa::Scalar);
        assert_eq!(Isa::ALL.map(Isa::name), ["scalar", "avx2", "avx512"]);
        assert!(Isa::ALL.is_sorted());
    }
}
