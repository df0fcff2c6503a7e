//! Dropout on a device: the masks of the CPU room, to the bit.

use half::{bf16, f16};

use super::{Dropout, cpu, cuda};
use crate::cuda::Float;
use crate::cuda::testing::{assert_same, for_each_device, random};
use crate::philox::{Philox, Stream};

const LENGTHS: [usize; 5] = [0, 1, 3, 509, 4099];

fn check<T: Float + PartialEq>() {
    let dropout = Dropout {
        p: 0.2,
        philox: Philox::new(1337, Stream::Dropout),
        place: 5,
        at: [77, 2],
    };
    let narrow = |x: &[f32]| -> Vec<T> { x.iter().map(|&x| T::from_f64(x.into())).collect() };
    let widen = |x: &[T]| -> Vec<f32> { x.iter().map(|x| x.to_f64() as f32).collect() };
    for_each_device(|device| {
        let stream = device.stream().unwrap();
        let at = device.upload(&dropout.at).unwrap();
        for n in LENGTHS {
            let (residual, branch) = (random::<T>(n, 1.0, 1), random::<T>(n, 1.0, 2));
            let mut out = device.alloc(n).unwrap();
            let on_device = [&residual, &branch].map(|x| device.upload(x).unwrap());
            for dropout in [None, Some(&dropout)] {
                let mut expected = vec![0.0; n];
                cpu::residual_add(&mut expected, &widen(&residual), &widen(&branch), dropout);
                let with_at = dropout.map(|dropout| (dropout, &at));
                let [residual, branch] = &on_device;
                cuda::residual_add(&stream, &mut out, residual, branch, with_at).unwrap();
                assert_same("residual_add", &out.download().unwrap(), &narrow(&expected));
            }
            let mut expected = vec![0.0; n];
            cpu::backward(&mut expected, &widen(&branch), &dropout);
            let mut dx = device.alloc(n).unwrap();
            cuda::backward(&stream, &mut dx, &on_device[1], &dropout, &at).unwrap();
            assert_same("backward", &dx.download().unwrap(), &narrow(&expected));
            // From an element that is not aligned: the vectors of the tensor, not of the memory.
            let mut moved = device.alloc(n + 1).unwrap().slice(1..n + 1);
            cuda::backward(&stream, &mut moved, &on_device[1], &dropout, &at).unwrap();
            assert_same(
                "not aligned",
                &moved.download().unwrap(),
                &narrow(&expected),
            );
        }
    });
}

#[test]
fn masks_are_the_cpus() {
    check::<f32>();
    check::<bf16>();
    check::<f16>();
}
