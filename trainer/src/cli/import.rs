//! `trainer import`: a model of another program becomes a checkpoint of ours.

use std::path::{Path, PathBuf};
use std::time::Instant;

use protocol::{ExitCode, RunDir};

use super::print;
use crate::checkpoint;
use crate::config::Config;
use crate::data::dataset::INFO;
use crate::data::locate::Places;
use crate::error::Result;
use crate::interop::{self, Imported, huggingface, nanogpt};
use crate::machine::{human_count, program};
use crate::metrics::Metrics;
use crate::tokenizer::{META, Tokenizer};

/// Sizes of GPT-2's vocabulary, as it is and as nanoGPT pads it.
const GPT2_VOCAB_SIZES: [usize; 2] = [50_257, 50_304];

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// nanoGPT's ckpt.pt or its folder, a folder of Hugging Face's, OWNER/NAME of its hub, or gpt2,
    /// gpt2-medium, gpt2-large, gpt2-xl.
    source: PathBuf,
    /// Run directory to make.
    #[arg(long = "out_dir", alias = "out-dir", default_value = "out")]
    out_dir: PathBuf,
    /// nanoGPT's meta.pkl [default: the one beside the checkpoint or in the dataset's folder].
    #[arg(long)]
    meta: Option<PathBuf>,
    /// Folder of the datasets, where meta.pkl is looked for.
    #[arg(long = "data_dir", alias = "data-dir")]
    data_dir: Option<PathBuf>,
    /// The model without its optimizer, at step 0.
    #[arg(long = "weights_only", alias = "weights-only")]
    weights_only: bool,
    /// Discard the checkpoints that the run directory holds.
    #[arg(long)]
    overwrite: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let (source, inside) = (&arguments.source, arguments.source.join(nanogpt::FILE));
    let of_nanogpt = [source, &inside].into_iter().find(|path| path.is_file());
    let (path, imported, mut found) = if let Some(path) = of_nanogpt {
        let imported = nanogpt::read(path, arguments.weights_only)?;
        let data_dir = arguments.data_dir.as_deref().unwrap_or(Path::new(""));
        let found = tokenizer(path, &imported, data_dir)?;
        (path.clone(), imported, found)
    } else {
        let (folder, imported) = from_hugging_face(source)?;
        let found = huggingface::tokenizer(&folder, &imported.model)?;
        (folder, imported, found)
    };
    if let Some(meta) = &arguments.meta {
        found = Some(Tokenizer::from_meta(meta)?);
    }
    let mut lines = describe(&imported, found.as_ref());
    let run = RunDir::new(&arguments.out_dir);
    interop::adopt(imported, found.as_ref(), &run, arguments.overwrite)?;
    let program = program();
    let out_dir = arguments.out_dir.display();
    lines.push(format!("imported {} into {out_dir}", path.display()));
    lines.push(format!(
        "{program} --resume --out_dir={out_dir} goes on with it"
    ));
    print(&lines.join("\n"))
}

/// A folder, or a repository of the hub.
fn from_hugging_face(source: &Path) -> Result<(PathBuf, Imported)> {
    let metrics = Metrics::new(None, "auto", Instant::now())?;
    let bar = metrics.prepare_bar();
    interop::pretrained(&source.to_string_lossy(), &|p| bar.update(p))
}

/// A run directory that holds nanoGPT's checkpoint and none of ours is made one of ours, as
/// nanoGPT's `--init_from=resume` would go on with it; what was done, a line each.
pub(super) fn adopt_in_place(out_dir: &Path, data_dir: &Path) -> Result<Vec<String>> {
    let run = RunDir::new(out_dir);
    let path = out_dir.join(nanogpt::FILE);
    if !path.is_file() || !checkpoint::list(&run)?.is_empty() {
        return Ok(Vec::new());
    }
    let imported = nanogpt::read(&path, false)?;
    let found = tokenizer(&path, &imported, data_dir)?;
    let mut lines = describe(&imported, found.as_ref());
    interop::adopt(imported, found.as_ref(), &run, false)?;
    lines.push(format!("imported {} in its place", path.display()));
    Ok(lines)
}

/// The tokenizer of a checkpoint that does not carry one: the characters of a `meta.pkl`, else
/// GPT-2's where the vocabulary has its size.
fn tokenizer(path: &Path, imported: &Imported, data_dir: &Path) -> Result<Option<Tokenizer>> {
    let vocab_size = imported.model.vocab_size;
    let dataset = imported.config.iter().find(|(key, _)| key == "dataset");
    let mut folders: Vec<PathBuf> = path.parent().map(Path::to_owned).into_iter().collect();
    if let Some((_, dataset)) = dataset {
        folders.extend(Places::new(data_dir, "").prepared(dataset));
    }
    for folder in folders {
        if !folder.join(META).exists() && !folder.join(INFO).exists() {
            continue;
        }
        if let Some(found) = Tokenizer::load(&folder)?
            && found.vocab_size() <= vocab_size
        {
            return Ok(Some(found));
        }
    }
    if GPT2_VOCAB_SIZES.contains(&vocab_size) {
        return Tokenizer::gpt2().map(Some);
    }
    Ok(None)
}

fn describe(imported: &Imported, tokenizer: Option<&Tokenizer>) -> Vec<String> {
    let model = &imported.model;
    let mut lines = vec![format!(
        "model: {} layers, {} heads, {} channels, context {}, vocabulary {}, {} parameters",
        model.n_layer,
        model.n_head,
        model.n_embd,
        model.block_size,
        model.vocab_size,
        human_count(model.parameter_count())
    )];
    lines.push(match imported.val_loss {
        Some(loss) => format!("step {}: val loss {loss:.4}", imported.step),
        None => format!("step {}", imported.step),
    });
    lines.extend(imported.notes.iter().cloned());
    lines.push(match tokenizer {
        Some(Tokenizer::Char(_)) => "tokenizer: characters".to_owned(),
        Some(Tokenizer::Subword(_)) => "tokenizer: GPT-2's".to_owned(),
        None => format!(
            "tokenizer: unknown; --meta=FILE names nanoGPT's {META}, without which the checkpoint \
             cannot sample by itself"
        ),
    });
    lines
}

/// What a resume with these words would go on from, imported first if it is nanoGPT's.
pub(super) fn adopt_for_resume(
    out_dir: Option<String>,
    data_dir: Option<String>,
) -> Result<Vec<String>> {
    let out_dir = out_dir.map_or_else(|| Config::default().out_dir, PathBuf::from);
    adopt_in_place(&out_dir, Path::new(&data_dir.unwrap_or_default()))
}
