//! One product in cuBLASLt's terms: what may compute it, and a call of it as a stream's work.
//!
//! cuBLASLt's matrices are stored column by column, as its default is; ours row by row are their
//! transposes. Descriptors and algorithms are made before a call is added, so that a capture
//! records nothing but the product itself.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::Arc;

use super::ffi::{self, AlgorithmWords, HeuristicResult, Opaque};
use super::{Library, WORKSPACE_ALIGNMENT};
use crate::cuda::work::{Region, Work};
use crate::cuda::{Buffer, CudaError, Float, Stream};

/// What sums are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Compute {
    F32,
    /// Factors of fp32 rounded to TF32's 10 bits of mantissa.
    Tf32,
}

/// What follows the sums. Vectors are of D's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Epilogue {
    None,
    /// Adds a vector of D's rows to every column.
    Bias,
    /// The form with tanh; what it is taken of goes to `aux` where that is wanted.
    Gelu {
        bias: bool,
        aux: bool,
    },
    /// Times the slope of that GELU at `aux`.
    GeluBackward,
    /// Besides, the sums of op(B)'s columns go to a vector of D's columns.
    BiasGradient,
}

/// D (m, n) = op(A) (m, k) · op(B) (k, n) + C (m, n), all packed, column by column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Product {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// A is stored as (k, m), B as (n, k).
    pub(crate) transposed: [bool; 2],
    pub(crate) compute: Compute,
    pub(crate) epilogue: Epilogue,
    /// Bytes that every operand begins at a multiple of; a power of two.
    pub(crate) alignment: u32,
}

/// One of cuBLASLt's ways to compute a product; means something to its version on its GPU alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Algorithm {
    pub words: [u64; 8],
    pub workspace_bytes: usize,
}

/// What a product reads and writes. `c` may be `d`.
pub(crate) struct Operands<'a, T, O> {
    pub(crate) a: &'a Buffer<T>,
    pub(crate) b: &'a Buffer<T>,
    pub(crate) c: Option<&'a Buffer<O>>,
    pub(crate) d: &'a Buffer<O>,
    pub(crate) bias: Option<&'a Buffer<O>>,
    pub(crate) aux: Option<&'a Buffer<O>>,
    /// At a multiple of `WORKSPACE_ALIGNMENT`.
    pub(crate) workspace: &'a Buffer<u8>,
}

/// A product as a piece of a stream's work.
#[derive(Debug)]
pub(in crate::cuda) struct Call {
    descriptors: Descriptors,
    algorithm: AlgorithmWords,
    a: Region,
    b: Region,
    c: Option<Region>,
    d: Region,
    workspace: Region,
    /// Kept: the descriptor holds their addresses.
    _vectors: [Option<Region>; 2],
}

/// cuBLASLt's descriptors of one product.
#[derive(Debug)]
struct Descriptors {
    library: Arc<Library>,
    matmul: Opaque,
    /// Of A, B, and of C and D.
    layouts: [Opaque; 3],
}

// SAFETY: nothing writes to descriptors once they are made.
unsafe impl Send for Descriptors {}
// SAFETY: as above.
unsafe impl Sync for Descriptors {}

impl Epilogue {
    fn number(self) -> i32 {
        match self {
            Self::None => ffi::EPILOGUE_DEFAULT,
            Self::Bias => ffi::EPILOGUE_BIAS,
            Self::Gelu { bias, aux } => match (bias, aux) {
                (false, false) => ffi::EPILOGUE_GELU,
                (true, false) => ffi::EPILOGUE_GELU_BIAS,
                (false, true) => ffi::EPILOGUE_GELU_AUX,
                (true, true) => ffi::EPILOGUE_GELU_AUX_BIAS,
            },
            Self::GeluBackward => ffi::EPILOGUE_DGELU,
            Self::BiasGradient => ffi::EPILOGUE_BGRADB,
        }
    }

    fn has_bias(self) -> bool {
        matches!(
            self,
            Self::Bias | Self::BiasGradient | Self::Gelu { bias: true, .. }
        )
    }

    fn has_aux(self) -> bool {
        matches!(self, Self::GeluBackward | Self::Gelu { aux: true, .. })
    }
}

impl Product {
    /// Elements of the vector that the epilogue reads or writes.
    fn bias_len(&self) -> usize {
        match self.epilogue {
            Epilogue::BiasGradient => self.n,
            _ => self.m,
        }
    }
}

fn type_of<T: Float>() -> c_int {
    match T::NAME {
        "bf16" => ffi::TYPE_BF16,
        "f16" => ffi::TYPE_F16,
        _ => ffi::TYPE_F32,
    }
}

impl Library {
    /// At most `most` ways to compute a product within a workspace, the one that the library
    /// expects to be fastest first; none where it does not take it. T: of A and B; O: of the rest.
    ///
    /// Partial sums are added up in fp32 and in a fixed order only.
    ///
    /// # Errors
    ///
    /// Where the library fails.
    pub(crate) fn algorithms<T: Float, O: Float>(
        self: &Arc<Self>,
        product: &Product,
        workspace_bytes: usize,
        most: usize,
    ) -> Result<Vec<Algorithm>, CudaError> {
        // Only the alignment of these addresses is looked at.
        let vector = |has: bool| if has { u64::from(product.alignment) } else { 0 };
        let epilogue = product.epilogue;
        let vectors = [vector(epilogue.has_bias()), vector(epilogue.has_aux())];
        let descriptors = Descriptors::new::<T, O>(self, product, vectors)?;
        let mut preference = ptr::null_mut();
        let functions = &self.code.functions;
        // SAFETY: writes a descriptor.
        let status = unsafe { (functions.preference_create)(&raw mut preference) };
        self.check("cublasLtMatmulPreferenceCreate", status)?;
        let found = descriptors.algorithms(preference, product, workspace_bytes, most);
        // SAFETY: created above.
        let status = unsafe { (functions.preference_destroy)(preference) };
        self.check("cublasLtMatmulPreferenceDestroy", status)?;
        found
    }

    /// Whether an algorithm that was kept computes the product within a workspace.
    ///
    /// # Errors
    ///
    /// Where the descriptors cannot be made.
    pub(crate) fn takes<T: Float, O: Float>(
        self: &Arc<Self>,
        product: &Product,
        algorithm: &Algorithm,
        workspace_bytes: usize,
    ) -> Result<bool, CudaError> {
        let epilogue = product.epilogue;
        let vector = |has: bool| if has { u64::from(product.alignment) } else { 0 };
        let vectors = [vector(epilogue.has_bias()), vector(epilogue.has_aux())];
        let descriptors = Descriptors::new::<T, O>(self, product, vectors)?;
        let mut result = HeuristicResult::NONE;
        let [a, b, d] = descriptors.layouts;
        self.enter()?;
        // SAFETY: the descriptors are whole, the algorithm is 64 bytes, the result is written.
        let status = unsafe {
            let matmul = descriptors.matmul;
            (self.code.functions.check)(
                self.handle,
                matmul,
                a,
                b,
                d,
                d,
                &raw const algorithm.words,
                &raw mut result,
            )
        };
        Ok(status == ffi::SUCCESS && result.workspace_bytes <= workspace_bytes)
    }
}

impl Algorithm {
    /// For people: identity, tile, stages and splits, by the numbers of NVIDIA's header.
    pub fn describe(&self, library: &Library) -> String {
        let number = |which: c_int| {
            let mut value = 0i32;
            // SAFETY: writes at most the 4 bytes of the value.
            let status = unsafe {
                (library.code.functions.config)(
                    &raw const self.words,
                    which,
                    (&raw mut value).cast(),
                    size_of::<i32>(),
                    ptr::null_mut(),
                )
            };
            if status == ffi::SUCCESS {
                value.to_string()
            } else {
                "?".to_owned()
            }
        };
        format!(
            "algorithm {}, tile {}, stages {}, splits {}",
            number(ffi::CONFIG_ID),
            number(ffi::CONFIG_TILE),
            number(ffi::CONFIG_STAGES),
            number(ffi::CONFIG_SPLITS)
        )
    }
}

impl Descriptors {
    /// `vectors`: addresses of bias and aux, 0 for none.
    fn new<T: Float, O: Float>(
        library: &Arc<Library>,
        product: &Product,
        vectors: [u64; 2],
    ) -> Result<Self, CudaError> {
        let functions = &library.code.functions;
        let compute = match product.compute {
            Compute::Tf32 if type_of::<T>() == ffi::TYPE_F32 => ffi::COMPUTE_32F_FAST_TF32,
            _ => ffi::COMPUTE_32F,
        };
        let mut made = Self {
            library: Arc::clone(library),
            matmul: ptr::null_mut(),
            layouts: [ptr::null_mut(); 3],
        };
        // SAFETY: writes a descriptor.
        let status =
            unsafe { (functions.matmul_create)(&raw mut made.matmul, compute, ffi::TYPE_F32) };
        library.check("cublasLtMatmulDescCreate", status)?;
        let Product { m, n, k, .. } = *product;
        let stored = |rows, cols, transposed: bool| {
            if transposed {
                (cols, rows)
            } else {
                (rows, cols)
            }
        };
        let shapes = [
            (type_of::<T>(), stored(m, k, product.transposed[0])),
            (type_of::<T>(), stored(k, n, product.transposed[1])),
            (type_of::<O>(), (m, n)),
        ];
        for (layout, (element, (rows, cols))) in made.layouts.iter_mut().zip(shapes) {
            let (rows, cols) = (rows as u64, cols as u64);
            // SAFETY: writes a descriptor.
            let status =
                unsafe { (functions.layout_create)(layout, element, rows, cols, rows as i64) };
            library.check("cublasLtMatrixLayoutCreate", status)?;
        }
        let operation = |transposed| if transposed { ffi::OP_T } else { ffi::OP_N };
        made.set(ffi::MATMUL_TRANSA, &operation(product.transposed[0]))?;
        made.set(ffi::MATMUL_TRANSB, &operation(product.transposed[1]))?;
        made.set(ffi::MATMUL_EPILOGUE, &product.epilogue.number())?;
        let [bias, aux] = vectors;
        if bias != 0 {
            made.set(ffi::MATMUL_BIAS_POINTER, &bias)?;
        }
        if aux != 0 {
            made.set(ffi::MATMUL_AUX_POINTER, &aux)?;
            made.set(ffi::MATMUL_AUX_LD, &(m as i64))?;
        }
        Ok(made)
    }

    fn set<V>(&self, attribute: c_int, value: &V) -> Result<(), CudaError> {
        let (from, bytes) = (ptr::from_ref(value).cast::<c_void>(), size_of::<V>());
        // SAFETY: the descriptor is whole; as many bytes are read.
        let status = unsafe {
            (self.library.code.functions.matmul_set)(self.matmul, attribute, from, bytes)
        };
        self.library.check("cublasLtMatmulDescSetAttribute", status)
    }

    fn algorithms(
        &self,
        preference: Opaque,
        product: &Product,
        workspace_bytes: usize,
        most: usize,
    ) -> Result<Vec<Algorithm>, CudaError> {
        let library = &self.library;
        let prefer = |attribute: c_int, from: *const c_void, bytes: usize| {
            // SAFETY: the caller created it; as many bytes are read.
            let status = unsafe {
                (library.code.functions.preference_set)(preference, attribute, from, bytes)
            };
            library.check("cublasLtMatmulPreferenceSetAttribute", status)
        };
        let workspace = workspace_bytes as u64;
        prefer(
            ffi::PREFERENCE_WORKSPACE_BYTES,
            (&raw const workspace).cast(),
            8,
        )?;
        let reductions = ffi::REDUCTION_COMPUTE_TYPE as u32;
        prefer(
            ffi::PREFERENCE_REDUCTIONS,
            (&raw const reductions).cast(),
            4,
        )?;
        for attribute in [
            ffi::PREFERENCE_ALIGNMENT_A,
            ffi::PREFERENCE_ALIGNMENT_B,
            ffi::PREFERENCE_ALIGNMENT_C,
            ffi::PREFERENCE_ALIGNMENT_D,
        ] {
            prefer(attribute, (&raw const product.alignment).cast(), 4)?;
        }
        let mut results = vec![HeuristicResult::NONE; most];
        let mut count = 0;
        let [a, b, d] = self.layouts;
        library.enter()?;
        // SAFETY: the descriptors are whole, and at most `most` results are written.
        let status = unsafe {
            (library.code.functions.heuristic)(
                library.handle,
                self.matmul,
                a,
                b,
                d,
                d,
                preference,
                most as c_int,
                results.as_mut_ptr(),
                &raw mut count,
            )
        };
        // Not every product and epilogue is supported, and that is said in more than one way.
        if status != ffi::SUCCESS {
            return Ok(Vec::new());
        }
        results.truncate(usize::try_from(count).unwrap_or(0));
        let usable = results.iter().filter(|result| {
            result.state == ffi::SUCCESS && result.workspace_bytes <= workspace_bytes
        });
        let algorithm = |result: &HeuristicResult| Algorithm {
            words: result.algorithm,
            workspace_bytes: result.workspace_bytes,
        };
        Ok(usable.map(algorithm).collect())
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        let functions = &self.library.code.functions;
        // SAFETY: each was created once, unless it is null. Nobody is left to tell of a failure.
        unsafe {
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                (functions.layout_destroy)(layout);
            }
            if !self.matmul.is_null() {
                (functions.matmul_destroy)(self.matmul);
            }
        }
    }
}

impl Stream {
    /// Adds a product. The algorithm is one that the library gave for it.
    ///
    /// # Errors
    ///
    /// Where the library refuses it, for a misaligned operand for instance.
    pub(crate) fn multiply<T: Float, O: Float>(
        &self,
        library: &Arc<Library>,
        product: &Product,
        algorithm: &Algorithm,
        operands: &Operands<'_, T, O>,
    ) -> Result<(), CudaError> {
        let Product {
            m, n, k, epilogue, ..
        } = *product;
        assert!(m > 0 && n > 0 && k > 0, "an empty product: {product:?}");
        let Operands {
            a,
            b,
            c,
            d,
            bias,
            aux,
            workspace,
        } = operands;
        assert_eq!(
            (a.len(), b.len(), d.len()),
            (m * k, k * n, m * n),
            "{product:?}"
        );
        assert!(c.is_none_or(|c| c.len() == m * n), "{product:?}");
        let lengths = [bias.map(Buffer::len), aux.map(Buffer::len)];
        let has = |has: bool, len| has.then_some(len);
        let expected = [
            has(epilogue.has_bias(), product.bias_len()),
            has(epilogue.has_aux(), m * n),
        ];
        assert_eq!(lengths, expected, "{product:?}");
        assert!(workspace.len() >= algorithm.workspace_bytes);
        assert!(workspace.is_aligned(WORKSPACE_ALIGNMENT));
        let vectors = [*bias, *aux].map(|vector| vector.map(Buffer::region));
        let addresses = vectors
            .each_ref()
            .map(|vector| vector.as_ref().map_or(0, |region| region.address));
        let work = || {
            let call = Call {
                descriptors: Descriptors::new::<T, O>(library, product, addresses)?,
                algorithm: algorithm.words,
                a: a.region(),
                b: b.region(),
                c: c.map(Buffer::region),
                d: d.region(),
                workspace: workspace.region(),
                _vectors: vectors,
            };
            Ok(Work::Multiply(Arc::new(call)))
        };
        let (words, adds) = (algorithm.words, c.is_some());
        let code = format!("cuBLASLt's {product:?} {words:x?} {} {adds}", T::NAME);
        // SAFETY: the operands keep their memory and are of the sizes that the descriptors say.
        unsafe { self.add_code(&code, work) }
    }
}

impl Call {
    /// Adds the product to a stream of the driver's; on the emulator it is done at once.
    ///
    /// # Safety
    ///
    /// The stream must be one of the library's device, or null on the emulator, and nobody else
    /// may use what is written until it is done.
    pub(in crate::cuda) unsafe fn run(&self, stream: *mut c_void) -> Result<(), CudaError> {
        let library = &self.descriptors.library;
        let [a, b, d] = self.descriptors.layouts;
        let (alpha, beta) = (1.0f32, if self.c.is_some() { 1.0f32 } else { 0.0 });
        let pointer = |region: &Region| region.address as *mut c_void;
        // Not read where beta is 0.
        let c = self.c.as_ref().unwrap_or(&self.d);
        library.enter()?;
        // SAFETY: `Stream::multiply` checked the sizes; alpha and beta are read before it returns.
        let status = unsafe {
            (library.code.functions.matmul)(
                library.handle,
                self.descriptors.matmul,
                &raw const alpha,
                pointer(&self.a),
                a,
                pointer(&self.b),
                b,
                &raw const beta,
                pointer(c),
                d,
                pointer(&self.d),
                d,
                &raw const self.algorithm,
                pointer(&self.workspace),
                self.workspace.bytes,
                stream,
            )
        };
        library.check("cublasLtMatmul", status)
    }
}
