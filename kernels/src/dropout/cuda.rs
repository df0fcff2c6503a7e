//! Dropout on a device. Called by the rooms that fuse it.

use super::Dropout;
use crate::cuda::{Arg, Buffer};

impl Dropout {
    /// The arguments of a kernel that drops: `const unsigned* at, unsigned key_0, unsigned key_1,
    /// unsigned place, unsigned threshold, float keep`. `at` is read when the kernel runs, in place
    /// of `self.at`: two words in device memory, which change from micro-step to micro-step.
    pub fn args(&self, at: &Buffer<u32>) -> [Arg; 6] {
        assert_eq!(at.len(), 2);
        let [key_0, key_1] = self.philox.key();
        [
            at.arg(),
            key_0.into(),
            key_1.into(),
            self.place.into(),
            self.threshold().into(),
            self.keep().into(),
        ]
    }

    /// The arguments for a kernel that shall keep every element.
    pub fn none() -> [Arg; 6] {
        let (zero, one) = (0u32, 1.0f32);
        [
            Arg::null(),
            zero.into(),
            zero.into(),
            zero.into(),
            zero.into(),
            one.into(),
        ]
    }
}
