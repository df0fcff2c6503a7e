//! Which products of a run go to cuBLASLt: timed once on the GPU at hand, before anything is
//! recorded, and kept in a file for the next run. Called when an engine is built.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kernels::cuda::Device;
use kernels::cuda::cublaslt::{Algorithm, Library};
use kernels::matmul::Dims;
use kernels::matmul::cuda::products::{Kind, Measured, Pick, Products, Task, Way};
use serde::{Deserialize, Serialize};

use super::memory::Precision;
use crate::config::Config;
use crate::data::locate;
use crate::engine::plan::{Dtype, Layout, Module, Op, Plan};
use crate::error::Result;

/// Of the file; another number means another content.
const FORMAT: u32 = 1;

/// The key `cublaslt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The kernels of this program only.
    Off,
    /// Where it is there, for the products that it computes faster.
    Auto,
    /// It must be there, and does all that it can.
    On,
}

/// What a config says of products.
#[derive(Clone, Debug)]
pub struct Selection {
    pub mode: Mode,
    /// Whether factors of fp32 may be rounded to TF32.
    pub tf32: bool,
    /// Folders for the file of choices; the first that can be written has it.
    pub folders: Vec<PathBuf>,
    /// Instead of what the mode and the device ask for.
    pub pick: Option<Pick>,
}

/// The products of a run, and what people are told of them.
pub(super) struct Selected<T> {
    pub(super) products: Products<T>,
    /// A line each.
    pub(super) notes: Vec<String>,
    /// In the order of the plan.
    pub(super) choices: Vec<(Task, Measured)>,
}

/// What choices are good for; a file holds those of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    format: u32,
    gpu: String,
    compute_capability: (u32, u32),
    /// 1000 major + 10 minor of its CUDA.
    driver: i32,
    /// 10000 major + 100 minor + patch.
    cublaslt: usize,
    /// A hash of the program's own kernels.
    kernels: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    identity: Identity,
    /// By type and task.
    choices: BTreeMap<String, Kept>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    /// None for the program's own kernels.
    library: Option<KeptWay>,
    us: Option<f32>,
    ours_us: Option<f32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct KeptWay {
    fused: bool,
    /// `cublasLtMatmulAlgo_t`, 64 bytes in hexadecimal, the first byte first.
    algorithm: String,
    workspace_bytes: usize,
}

impl Selection {
    /// The program's own kernels.
    pub fn off() -> Self {
        Self {
            mode: Mode::Off,
            tf32: false,
            folders: Vec::new(),
            pick: None,
        }
    }

    pub fn of(config: &Config) -> Self {
        Self {
            mode: match config.cublaslt.as_str() {
                "off" => Mode::Off,
                "on" => Mode::On,
                _ => Mode::Auto,
            },
            tf32: config.tf32,
            folders: locate::caches(config),
            pick: None,
        }
    }

    /// Whether the library will be looked for.
    ///
    /// # Errors
    /// [`crate::Error::Gpu`] where the device fails.
    pub(super) fn wants_library(&self, device: &Device) -> Result<bool> {
        Ok(self.pick(device.free_bytes()?.is_none()).is_some())
    }

    /// How ways are chosen on a device; `None` where the library is not asked for.
    fn pick(&self, is_emulated: bool) -> Option<Pick> {
        if self.mode == Mode::Off {
            return None;
        }
        self.pick.or(match (self.mode, is_emulated) {
            // The emulator's times mean nothing.
            (Mode::Auto, true) | (Mode::Off, _) => None,
            (Mode::On, true) => Some(Pick::First),
            (Mode::Auto, false) => Some(Pick::Fastest),
            (Mode::On, false) => Some(Pick::FastestOfLibrary),
        })
    }
}

/// Chooses for the products of these plans.
///
/// # Errors
/// [`crate::Error::Device`] where the library must be there and is not, or memory does not suffice.
pub(super) fn select<T: Precision>(
    device: &Device,
    selection: &Selection,
    plans: &[&Plan],
    layout: &Layout,
) -> Result<Selected<T>> {
    let is_emulated = device.free_bytes()?.is_none();
    let own = |notes| -> Result<Selected<T>> {
        Ok(Selected {
            products: Products::new(device, None, false)?,
            notes,
            choices: Vec::new(),
        })
    };
    let Some(pick) = selection.pick(is_emulated) else {
        return own(vec!["products: the program's own kernels".to_owned()]);
    };
    let library = match Library::open(device) {
        Ok(library) => library,
        Err(error) if selection.mode == Mode::On => return Err(error.into()),
        Err(error) => {
            let text = format!("products: the program's own kernels: {error}");
            let mut notes: Vec<String> = text.lines().map(str::to_owned).collect();
            notes.extend(tf32_note::<T>(selection.tf32, false));
            return own(notes);
        }
    };
    let tasks = tasks(plans, layout);
    let mut products = Products::new(device, Some(Arc::clone(&library)), selection.tf32)?;
    let mut notes = Vec::new();
    let is_timed = matches!(pick, Pick::Fastest | Pick::FastestOfLibrary);
    let choices = if is_timed {
        let store = Store {
            identity: identity(device, &library),
            scope: scope::<T>(selection.tf32, pick),
            folders: &selection.folders,
        };
        store.choose(device, &mut products, &tasks, pick, &mut notes)?
    } else {
        products.choose(device, &tasks, pick)?
    };
    let is_its = |(_, measured): &&(Task, Measured)| measured.way != Way::Ours;
    let count = choices.iter().filter(is_its).count();
    let version = library.version();
    let line = format!(
        "products: cuBLASLt {}.{}.{} ({}) for {count} of {}",
        version / 10_000,
        version / 100 % 100,
        version % 100,
        library.path().display(),
        choices.len()
    );
    notes.insert(0, line);
    notes.extend(tf32_note::<T>(selection.tf32, count > 0));
    Ok(Selected {
        products,
        notes,
        choices,
    })
}

impl<T: Precision> Selected<T> {
    /// A line for each product: who computes it, and how long that takes.
    pub(super) fn table(&self) -> Vec<String> {
        let time =
            |us: Option<f32>| us.map_or_else(|| "not timed".to_owned(), |us| format!("{us:.1} us"));
        let library = self.products.library();
        let line = |(task, measured): &(Task, Measured)| {
            let way = match (&measured.way, library) {
                (Way::Library { fused, algorithm }, Some(library)) => format!(
                    "cuBLASLt{}, {}",
                    if *fused { "" } else { " and a kernel after it" },
                    algorithm.describe(library)
                ),
                _ => "own kernels".to_owned(),
            };
            let ours = match measured.way {
                Way::Ours => String::new(),
                Way::Library { .. } => format!(" (own kernels {})", time(measured.ours_us)),
            };
            format!("  {}: {way}: {}{ours}", task.name(), time(measured.us))
        };
        self.choices.iter().map(line).collect()
    }
}

/// What becomes of fp32's factors, where that is what the run computes in.
fn tf32_note<T: Precision>(tf32: bool, library: bool) -> Option<String> {
    let text = match (tf32, library) {
        (true, true) => {
            "tf32: cuBLASLt rounds the factors of products, the program's own kernels do not"
        }
        (true, false) => "tf32: no effect, the program's own kernels multiply in full fp32",
        (false, _) => return None,
    };
    (T::DTYPE == Dtype::F32).then(|| text.to_owned())
}

/// Has the products of a plan done as those of another of the same model, which differs in its rows
/// alone: nothing is timed, and the program's own kernels add up in the same order.
///
/// # Errors
/// Where the library fails.
pub(super) fn follow<T: Precision>(
    products: &mut Products<T>,
    plan: &Plan,
    example: &Plan,
    layout: &Layout,
) -> Result<()> {
    let examples = tasks(&[example], layout);
    for task in tasks(&[plan], layout) {
        let is_alike = |it: &&Task| {
            let sizes = |task: &Task| (task.dims.k, task.dims.n);
            it.kind == task.kind && sizes(it) == sizes(&task)
        };
        let alike = examples.iter().find(is_alike);
        let alike = alike.expect("the same operations on other rows");
        let Way::Library { fused, .. } = products.way(alike) else {
            continue;
        };
        if products.set(task, products.way(alike))? {
            continue;
        }
        // An algorithm need not take every number of rows.
        let ways = products.library_ways(&task, 1)?;
        let is_fused = |way: &&Way| matches!(way, Way::Library { fused: f, .. } if *f == fused);
        if let Some(way) = ways.iter().find(is_fused) {
            products.set(task, *way)?;
        }
    }
    Ok(())
}

/// The products of some plans, each once.
fn tasks(plans: &[&Plan], layout: &Layout) -> Vec<Task> {
    let mut tasks = Vec::new();
    for plan in plans {
        let form = plan.model.gelu.form();
        let dims = |module: &Module| {
            let shape = &layout.parameters[module.weight.0].shape;
            let (k, n) = (shape[1], shape[0]);
            Dims {
                m: plan.rows(),
                k,
                n,
            }
        };
        let head = |m: usize| Dims {
            m,
            k: plan.model.n_embd,
            n: plan.logits_stride,
        };
        for op in &plan.ops {
            let found = match op {
                Op::Linear {
                    module, residual, ..
                } => {
                    let (bias, residual) = (module.bias.is_some(), residual.is_some());
                    vec![(Kind::Forward { bias, residual }, dims(module))]
                }
                Op::LinearGelu {
                    pre, out, module, ..
                } => {
                    let (bias, pre) = (module.bias.is_some(), pre != out);
                    vec![(Kind::ForwardGelu { form, bias, pre }, dims(module))]
                }
                Op::Head { rows, .. } => {
                    let (bias, residual) = (false, false);
                    vec![(Kind::Forward { bias, residual }, head(rows.len()))]
                }
                Op::HeadBackward { rows, .. } => {
                    let weight = Kind::BackwardWeight { bias: false };
                    let dims = head(rows.len());
                    vec![(Kind::BackwardInput, dims), (weight, dims)]
                }
                Op::LinearBackwardInput { module, .. } => {
                    vec![(Kind::BackwardInput, dims(module))]
                }
                Op::LinearGeluBackwardInput { module, .. } => {
                    vec![(Kind::BackwardInputGelu { form }, dims(module))]
                }
                Op::LinearBackwardWeight { module, .. } => {
                    let bias = module.bias.is_some();
                    vec![(Kind::BackwardWeight { bias }, dims(module))]
                }
                _ => Vec::new(),
            };
            for (kind, dims) in found {
                let task = Task { kind, dims };
                if !tasks.contains(&task) {
                    tasks.push(task);
                }
            }
        }
    }
    tasks
}

fn identity(device: &Device, library: &Library) -> Identity {
    let properties = device.properties();
    // Whichever number it has today.
    let name = properties
        .name
        .split_once('(')
        .map_or(&*properties.name, |(_, rest)| rest);
    Identity {
        format: FORMAT,
        gpu: name.trim_end_matches(')').to_owned(),
        compute_capability: properties.compute_capability,
        driver: device.driver_version(),
        cublaslt: library.version(),
        kernels: device.kernels_hash(),
    }
}

/// What a choice depends on besides the identity and the task.
fn scope<T: Precision>(tf32: bool, pick: Pick) -> String {
    let tf32 = if tf32 && T::DTYPE == Dtype::F32 {
        " tf32"
    } else {
        ""
    };
    let only = if pick == Pick::FastestOfLibrary {
        " cublaslt"
    } else {
        ""
    };
    format!("{}{tf32}{only}", T::DTYPE.name())
}

/// The file of choices.
struct Store<'a> {
    identity: Identity,
    scope: String,
    folders: &'a [PathBuf],
}

impl Store<'_> {
    /// As the file says where it says something usable, otherwise as timed now and kept there.
    fn choose<T: Precision>(
        &self,
        device: &Device,
        products: &mut Products<T>,
        tasks: &[Task],
        pick: Pick,
        notes: &mut Vec<String>,
    ) -> Result<Vec<(Task, Measured)>> {
        let mut kept = self.load(notes);
        let mut known = Vec::new();
        let mut missing = Vec::new();
        for &task in tasks {
            let measured = kept.get(&self.key(&task)).and_then(Kept::measured);
            match measured {
                Some(measured) if products.set(task, measured.way)? => known.push((task, measured)),
                _ => missing.push(task),
            }
        }
        if missing.is_empty() {
            return Ok(known);
        }
        let timed = products.choose(device, &missing, pick)?;
        for (task, measured) in &timed {
            kept.insert(self.key(task), Kept::of(measured));
        }
        let count = timed.len();
        known.extend(timed);
        notes.push(match self.save(kept) {
            Ok(path) => format!("products: {count} timed, kept in {}", path.display()),
            Err(error) => format!("products: {count} timed, and cannot be kept: {error}"),
        });
        let order = |task: &Task| tasks.iter().position(|other| other == task);
        known.sort_by_key(|(task, _)| order(task));
        Ok(known)
    }

    fn key(&self, task: &Task) -> String {
        format!("{} {}", self.scope, task.name())
    }

    /// One for each model of GPU.
    fn name(&self) -> String {
        let letter = |c: char| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        };
        let gpu: String = self.identity.gpu.chars().map(letter).collect();
        format!("products-{gpu}.json")
    }

    /// The choices of the first file that is there; none if they are not for this machine.
    fn load(&self, notes: &mut Vec<String>) -> BTreeMap<String, Kept> {
        for folder in self.folders {
            let path = folder.join("autotune").join(self.name());
            let Ok(bytes) = fs::read(&path) else {
                continue;
            };
            let reason = match serde_json::from_slice::<File>(&bytes) {
                Ok(file) if file.identity == self.identity => return file.choices,
                Ok(file) => format!("for {:?}, expected {:?}", file.identity, self.identity),
                Err(error) => format!("not a file of choices: {error}"),
            };
            notes.push(format!("{}: {reason}: timed again", path.display()));
            return BTreeMap::new();
        }
        BTreeMap::new()
    }

    /// Writes the file so that a reader finds the old or the new one whole.
    fn save(&self, choices: BTreeMap<String, Kept>) -> std::result::Result<PathBuf, String> {
        let identity = self.identity.clone();
        let file = File { identity, choices };
        let text = serde_json::to_vec_pretty(&file).map_err(|error| error.to_string())?;
        let mut refused = "there is no folder for it".to_owned();
        for folder in self.folders {
            let path = folder.join("autotune").join(self.name());
            match replace(&path, &text) {
                Ok(()) => return Ok(path),
                Err(error) => refused = format!("{}: {error}", path.display()),
            }
        }
        Err(refused)
    }
}

fn replace(path: &Path, contents: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().expect("a file in a folder");
    fs::create_dir_all(folder)?;
    // Two runs may begin at the same time.
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let written = fs::write(&temporary, contents)
        .and_then(|()| fs::File::open(&temporary)?.sync_all())
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        fs::remove_file(&temporary).ok();
    }
    written
}

impl Kept {
    fn of(measured: &Measured) -> Self {
        let library = match &measured.way {
            Way::Ours => None,
            Way::Library { fused, algorithm } => {
                let bytes = algorithm.words.iter().flat_map(|word| word.to_le_bytes());
                Some(KeptWay {
                    fused: *fused,
                    algorithm: bytes.map(|byte| format!("{byte:02x}")).collect(),
                    workspace_bytes: algorithm.workspace_bytes,
                })
            }
        };
        let Measured { us, ours_us, .. } = *measured;
        Self {
            library,
            us,
            ours_us,
        }
    }

    /// `None` where the algorithm is no 64 bytes.
    fn measured(&self) -> Option<Measured> {
        let way = match &self.library {
            None => Way::Ours,
            Some(kept) => {
                let mut words = [0; 8];
                let text =
                    Some(&kept.algorithm).filter(|text| text.len() == 128 && text.is_ascii())?;
                for (i, word) in words.iter_mut().enumerate() {
                    let digits = &text[16 * i..16 * (i + 1)];
                    *word = u64::from_str_radix(digits, 16).ok()?.swap_bytes();
                }
                Way::Library {
                    fused: kept.fused,
                    algorithm: Algorithm {
                        words,
                        workspace_bytes: kept.workspace_bytes,
                    },
                }
            }
        };
        let Self { us, ours_us, .. } = *self;
        Some(Measured { way, us, ours_us })
    }
}

#[cfg(test)]
mod tests;
