//! Every task by every way of cuBLASLt against an f64 loop; choices, and what is refused. On the
//! emulator the library is its own; with ANNEAL_TEST_DEVICE=cuda it is NVIDIA's, which must be
//! there.

use half::{bf16, f16};

use super::{Layer, dims, gelu_of, plus, tolerance};
use crate::cuda::cublaslt::{Algorithm, Library};
use crate::cuda::testing::{assert_near, assert_same, for_each_device, random, widen};
use crate::cuda::{Buffer, Device, Float, Schedule};
use crate::matmul::Dims;
use crate::matmul::cuda::products::{Kind, Measured, Pick, Products, Task, Way};
use crate::matmul::cuda::{self, Form};

/// Vectors with whole rows, and rows that are multiples of nothing.
const SHAPES: [Dims; 2] = [dims(24, 40, 72), dims(37, 35, 21)];

/// What even the emulator times quickly.
const SMALL: Dims = dims(9, 16, 8);

const KINDS: [Kind; 13] = [
    Kind::Forward {
        bias: false,
        residual: false,
    },
    Kind::Forward {
        bias: true,
        residual: false,
    },
    Kind::Forward {
        bias: false,
        residual: true,
    },
    Kind::Forward {
        bias: true,
        residual: true,
    },
    Kind::ForwardGelu {
        form: Form::Erf,
        bias: true,
        pre: true,
    },
    Kind::ForwardGelu {
        form: Form::Erf,
        bias: false,
        pre: false,
    },
    Kind::ForwardGelu {
        form: Form::Tanh,
        bias: true,
        pre: true,
    },
    Kind::ForwardGelu {
        form: Form::Tanh,
        bias: false,
        pre: false,
    },
    Kind::BackwardInput,
    Kind::BackwardInputGelu { form: Form::Erf },
    Kind::BackwardInputGelu { form: Form::Tanh },
    Kind::BackwardWeight { bias: false },
    Kind::BackwardWeight { bias: true },
];

fn products<T: Float>(device: &Device, tf32: bool) -> Products<T> {
    let library = Library::open(device).unwrap_or_else(|error| panic!("{error}"));
    Products::new(device, Some(library), tf32).unwrap()
}

/// What a task leaves: what it writes in T, then what it writes in fp32.
type Left<T> = (Vec<Vec<T>>, Vec<Vec<f32>>);

/// A layer with all that a task may read besides.
struct Case<T> {
    layer: Layer<T>,
    residual: Vec<T>,
    pre: Vec<T>,
    dweight: Vec<f32>,
    dbias: Vec<f32>,
}

impl<T: Float> Case<T> {
    fn new(dims: Dims) -> Self {
        let Dims { m, k, n } = dims;
        Self {
            layer: Layer::new(dims),
            residual: random(m * n, 1.0, 5),
            pre: random(m * k, 3.0, 6),
            dweight: random(n * k, 4.0, 7),
            dbias: random(n, 4.0, 8),
        }
    }

    fn run(&self, products: &Products<T>, device: &Device, kind: Kind) -> Left<T> {
        let dims = self.layer.dims;
        let Dims { m, k, n } = dims;
        let stream = device.stream().unwrap();
        let upload = |data: &[T]| device.upload(data).unwrap();
        let [x, weight, bias] =
            [&self.layer.x, &self.layer.weight, &self.layer.bias].map(|data| upload(data));
        let dout = upload(&self.layer.dout);
        let empty = |len| device.alloc::<T>(len).unwrap();
        let down = |buffer: &Buffer<T>| buffer.download().unwrap();
        match kind {
            Kind::Forward {
                bias: has_bias,
                residual,
            } => {
                let rest = upload(&self.residual);
                let (bias, rest) = (has_bias.then_some(&bias), residual.then_some(&rest));
                let mut out = empty(m * n);
                products
                    .forward(&stream, &mut out, &x, &weight, bias, rest, dims)
                    .unwrap();
                (vec![down(&out)], vec![])
            }
            Kind::ForwardGelu {
                form,
                bias: has_bias,
                pre,
            } => {
                let (mut out, mut argument) = (empty(m * n), empty(m * n));
                let kept = pre.then_some(&mut argument);
                let bias = has_bias.then_some(&bias);
                let done =
                    products.forward_gelu(&stream, form, kept, &mut out, &x, &weight, bias, dims);
                done.unwrap();
                let argument = pre.then(|| down(&argument));
                (argument.into_iter().chain([down(&out)]).collect(), vec![])
            }
            Kind::BackwardInput => {
                let mut dx = empty(m * k);
                products
                    .backward_input(&stream, &mut dx, &dout, &weight, dims)
                    .unwrap();
                (vec![down(&dx)], vec![])
            }
            Kind::BackwardInputGelu { form } => {
                let (mut dpre, pre) = (empty(m * k), upload(&self.pre));
                let done = products
                    .backward_input_gelu(&stream, form, &mut dpre, &dout, &weight, &pre, dims);
                done.unwrap();
                (vec![down(&dpre)], vec![])
            }
            Kind::BackwardWeight { bias } => {
                (vec![], self.run_weight(products, device, [&dout, &x], bias))
            }
        }
    }

    /// Gradients of the weight and, where it is asked for, of the bias.
    fn run_weight(
        &self,
        products: &Products<T>,
        device: &Device,
        [dout, x]: [&Buffer<T>; 2],
        bias: bool,
    ) -> Vec<Vec<f32>> {
        let (stream, dims) = (device.stream().unwrap(), self.layer.dims);
        let mut dweight = device.upload(&self.dweight).unwrap();
        let mut dbias = device.upload(&self.dbias).unwrap();
        let len = cuda::scratch_len(dims, device.properties());
        let (mut scratch, for_bias) = (device.alloc(len).unwrap(), bias.then_some(&mut dbias));
        products
            .backward_weight(&stream, &mut dweight, for_bias, dout, x, &mut scratch, dims)
            .unwrap();
        let left = [&dweight, &dbias].map(|buffer| buffer.download().unwrap());
        left.into_iter().take(1 + usize::from(bias)).collect()
    }

    fn expected(&self, kind: Kind) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
        let (layer, Dims { m, n, .. }) = (&self.layer, self.layer.dims);
        match kind {
            Kind::Forward { bias, residual } => {
                let out = layer.forward(bias);
                let out = if residual {
                    plus(&out, &self.residual)
                } else {
                    out
                };
                (vec![out], vec![])
            }
            Kind::ForwardGelu { form, bias, pre } => {
                let argument = layer.forward(bias);
                let out = argument.iter().map(|&x| gelu_of(form, x).0).collect();
                (
                    pre.then_some(argument).into_iter().chain([out]).collect(),
                    vec![],
                )
            }
            Kind::BackwardInput => (vec![layer.backward_input()], vec![]),
            Kind::BackwardInputGelu { form } => {
                let terms = layer.backward_input().into_iter().zip(widen(&self.pre));
                (
                    vec![terms.map(|(d, x)| d * gelu_of(form, x).1).collect()],
                    vec![],
                )
            }
            Kind::BackwardWeight { bias } => {
                let dout = widen(&layer.dout);
                let sums: Vec<f64> = (0..n)
                    .map(|j| (0..m).map(|i| dout[i * n + j]).sum())
                    .collect();
                let all = [
                    plus(&layer.backward_weight(), &self.dweight),
                    plus(&sums, &self.dbias),
                ];
                (
                    vec![],
                    all.into_iter().take(1 + usize::from(bias)).collect(),
                )
            }
        }
    }
}

/// GELU's argument or result may be rounded before the other is made of it.
fn allowed<O: Float>() -> f64 {
    2.0 * tolerance::<O>()
}

fn check_every_way<T: Float>() {
    for dims in SHAPES {
        let case = Case::<T>::new(dims);
        for kind in KINDS {
            let (expected, expected_f32) = case.expected(kind);
            let task = Task { kind, dims };
            for_each_device(|device| {
                let mut products = products::<T>(device, false);
                let ways = products.library_ways(&task, 8).unwrap();
                assert!(!ways.is_empty(), "{}", task.name());
                for way in ways {
                    assert!(products.set(task, way).unwrap());
                    let (left, left_f32) = case.run(&products, device, kind);
                    let what = format!("{} {} {way:?}", T::NAME, task.name());
                    assert_eq!(
                        left.len() + left_f32.len(),
                        expected.len() + expected_f32.len()
                    );
                    for (left, expected) in left.iter().zip(&expected) {
                        assert_near(&what, left, expected, allowed::<T>());
                    }
                    for (left, expected) in left_f32.iter().zip(&expected_f32) {
                        assert_near(&what, left, expected, allowed::<f32>());
                    }
                }
            });
        }
    }
}

#[test]
fn every_way_of_every_task_matches_f64() {
    check_every_way::<f32>();
    check_every_way::<bf16>();
    check_every_way::<f16>();
}

/// 10 bits of mantissa: an error of some 2^-11 that fp32 does not have.
#[test]
fn tf32_rounds_factors_and_only_where_it_is_asked_for() {
    let dims = SHAPES[0];
    let case = Case::<f32>::new(dims);
    let kind = Kind::BackwardInput;
    let (expected, _) = case.expected(kind);
    for_each_device(|device| {
        let error = |tf32| {
            let mut products = products::<f32>(device, tf32);
            products
                .choose(device, &[Task { kind, dims }], Pick::First)
                .unwrap();
            let (left, _) = case.run(&products, device, kind);
            assert_near("tf32", &left[0], &expected[0], 2e-3);
            let pairs = left[0].iter().zip(&expected[0]);
            let worst = pairs.map(|(&x, y)| (f64::from(x) - y).abs());
            worst.fold(0.0, f64::max)
        };
        assert!(error(false) < 1e-5);
        // GPUs before 8.0 have no TF32.
        assert!(error(true) > 1e-5 || device.properties().compute_capability < (8, 0));
    });
}

/// What was chosen for a task.
fn chosen(products: &mut Products<bf16>, device: &Device, task: Task, pick: Pick) -> Measured {
    let chosen = products.choose(device, &[task], pick).unwrap();
    let [(of, measured)] = &chosen[..] else {
        panic!("{chosen:?}");
    };
    assert_eq!((*of, products.way(&task)), (task, measured.way));
    *measured
}

#[test]
fn choices_are_from_the_end_that_is_asked_for_on_the_emulator() {
    let device = &Device::emulator(Schedule::default());
    let dims = SHAPES[0];
    let kind = Kind::ForwardGelu {
        form: Form::Tanh,
        bias: true,
        pre: true,
    };
    let task = Task { kind, dims };
    let mut products = products::<bf16>(device, false);
    assert_eq!(products.way(&task), Way::Ours);
    for (pick, is_fused) in [(Pick::First, true), (Pick::Last, false)] {
        let measured = chosen(&mut products, device, task, pick);
        let Way::Library { fused, .. } = measured.way else {
            panic!("{measured:?}");
        };
        assert_eq!((fused, measured.us), (is_fused, None));
    }
    for pick in [Pick::Fastest, Pick::FastestOfLibrary] {
        let measured = chosen(&mut products, device, task, pick);
        assert!(
            measured.us.is_some() && measured.ours_us.is_some(),
            "{measured:?}"
        );
        let is_ours = measured.way == Way::Ours;
        assert!(!(is_ours && pick == Pick::FastestOfLibrary), "{measured:?}");
        assert!(
            pick != Pick::Fastest || measured.us <= measured.ours_us,
            "{measured:?}"
        );
    }
    // Every kind can be timed.
    for kind in KINDS {
        let task = Task { kind, dims: SMALL };
        assert!(
            chosen(&mut products, device, task, Pick::Fastest)
                .us
                .is_some()
        );
    }
}

#[test]
fn without_a_way_or_its_alignment_the_room_does_it_on_the_emulator() {
    let device = &Device::emulator(Schedule::default());
    let dims = SHAPES[0];
    let Dims { m, k, n } = dims;
    let kind = Kind::BackwardInput;
    let case = Case::<bf16>::new(dims);
    let ours = Products::<bf16>::new(device, None, true).unwrap();
    let (expected, _) = case.run(&ours, device, kind);
    let mut products = products::<bf16>(device, false);
    let task = Task { kind, dims };
    products.choose(device, &[task], Pick::Last).unwrap();
    let stream = device.stream().unwrap();
    let weight = device.upload(&case.layer.weight).unwrap();
    let moved = [&[bf16::ONE], &case.layer.dout[..]].concat();
    let dout = device.upload(&moved).unwrap().slice(1..m * n + 1);
    let mut dx = device.alloc(m * k).unwrap();
    products
        .backward_input(&stream, &mut dx, &dout, &weight, dims)
        .unwrap();
    assert_same("moved", &dx.download().unwrap(), &expected[0]);

    let Way::Library { algorithm, .. } = products.way(&task) else {
        panic!("the last is the library's");
    };
    let wrong = Algorithm {
        words: [3; 8],
        ..algorithm
    };
    for (task, fused, algorithm) in [
        (task, true, wrong),
        (task, false, algorithm),
        (
            Task {
                kind: Kind::BackwardWeight { bias: false },
                dims,
            },
            true,
            algorithm,
        ),
    ] {
        let before = products.way(&task);
        assert!(
            !products
                .set(task, Way::Library { fused, algorithm })
                .unwrap()
        );
        assert_eq!(products.way(&task), before);
    }
    let mut ours = ours;
    assert!(
        !ours
            .set(
                task,
                Way::Library {
                    fused: true,
                    algorithm
                }
            )
            .unwrap()
    );
    assert_eq!(
        ours.choose(device, &[task], Pick::First).unwrap()[0].1.way,
        Way::Ours
    );
}

#[test]
fn a_recorded_product_gives_the_same_bits_and_keeps_what_it_needs() {
    let dims = SHAPES[0];
    let case = Case::<bf16>::new(dims);
    let kind = Kind::BackwardWeight { bias: true };
    for_each_device(|device| {
        let mut products = products::<bf16>(device, false);
        products
            .choose(device, &[Task { kind, dims }], Pick::First)
            .unwrap();
        let stream = device.stream().unwrap();
        let (x, dout) = (
            device.upload(&case.layer.x),
            device.upload(&case.layer.dout),
        );
        let (x, dout) = (x.unwrap(), dout.unwrap());
        let mut dweight = device.upload(&case.dweight).unwrap();
        let mut dbias = device.upload(&case.dbias).unwrap();
        let len = cuda::scratch_len(dims, device.properties());
        let mut scratch = device.alloc(len).unwrap();
        let mut record = || {
            stream.capture(|stream| {
                let (dweight, dbias) = (&mut dweight, Some(&mut dbias));
                products.backward_weight(stream, dweight, dbias, &dout, &x, &mut scratch, dims)
            })
        };
        // The library loads what it has not run before.
        let refused = record().unwrap_err().to_string();
        assert!(
            refused.contains("the first launch of cuBLASLt's"),
            "{refused}"
        );
        let (_, expected) = case.run(&products, device, kind);
        let graph = record();
        let graph = graph.unwrap();
        assert_eq!(graph.len(), 2, "the product, and its sums added");
        drop((products, x, dout, scratch));
        graph.launch(&stream).unwrap();
        stream.synchronize().unwrap();
        assert_same("dweight", &dweight.download().unwrap(), &expected[0]);
        assert_same("dbias", &dbias.download().unwrap(), &expected[1]);
    });
}
