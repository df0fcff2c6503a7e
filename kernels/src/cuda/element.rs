//! The types that device memory holds. Called by the launch layer and the rooms' launchers.

use half::{bf16, f16};

/// A type whose values are plain bits, every pattern of them a value.
pub trait Element: Copy + Send + Sync + std::fmt::Debug + private::Sealed + 'static {
    /// The letter of the type in a kernel's signature.
    const CODE: u8;
}

/// The types that kernels compute in.
pub trait Float: Element {
    /// The last part of a kernel's name.
    const NAME: &'static str;
    /// The largest relative error of rounding to this type.
    const ROUNDOFF: f64;
    fn from_f64(x: f64) -> Self;
    fn to_f64(self) -> f64;

    /// The kernel `stem` for this type, such as `gelu_forward_bf16`.
    fn kernel(stem: &str) -> String {
        format!("{stem}_{}", Self::NAME)
    }
}

mod private {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($type:ty: $code:literal),*) => {$(
        impl private::Sealed for $type {}
        impl Element for $type {
            const CODE: u8 = $code;
        }
    )*};
}
elements!(
    f32: b'f', bf16: b'b', f16: b'h', i32: b'i', u32: b'i', i64: b'l', u64: b'l', i16: b's',
    u16: b's', i8: b'c', u8: b'c'
);

impl Float for f32 {
    const NAME: &'static str = "f32";
    const ROUNDOFF: f64 = 1.0 / (1u64 << 24) as f64;
    fn from_f64(x: f64) -> Self {
        x as Self
    }
    fn to_f64(self) -> f64 {
        self.into()
    }
}

impl Float for bf16 {
    const NAME: &'static str = "bf16";
    const ROUNDOFF: f64 = 1.0 / (1u64 << 8) as f64;
    fn from_f64(x: f64) -> Self {
        // By way of f32: `half` takes only the upper 32 bits of an f64 for its rounding.
        Self::from_f32(x as f32)
    }
    fn to_f64(self) -> f64 {
        self.into()
    }
}

impl Float for f16 {
    const NAME: &'static str = "f16";
    const ROUNDOFF: f64 = 1.0 / (1u64 << 11) as f64;
    fn from_f64(x: f64) -> Self {
        Self::from_f64(x)
    }
    fn to_f64(self) -> f64 {
        self.into()
    }
}
