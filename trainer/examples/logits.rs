//! Prints the logits after the last of some tokens, as a JSON list: for `bench/interop.sh`, which
//! compares them with transformers'.
//!
//! `logits FOLDER ID,ID,...`: a checkpoint of ours or a folder of Hugging Face's.
#![expect(clippy::print_stdout, reason = "that is what it is for")]

use std::path::Path;

use protocol::RunDir;
use trainer::checkpoint::load_model_only;
use trainer::config::Config;
use trainer::engine::{self, Place};
use trainer::interop::huggingface;
use trainer::{Error, Result};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [folder, ids] = &words[..] else {
        return Err(Error::config("expected FOLDER ID,ID,..."));
    };
    let folder = Path::new(folder);
    let ids: Vec<u32> = ids
        .split(',')
        .map(|id| {
            id.parse()
                .map_err(|_| Error::config(format!("an id of {id:?}")))
        })
        .collect::<Result<_>>()?;
    let (model, parameters) = if folder.join(RunDir::MANIFEST).exists() {
        let loaded = load_model_only(folder)?;
        (loaded.state.model, loaded.engine.parameters)
    } else {
        let imported = huggingface::read(folder)?;
        (imported.model, imported.engine.parameters)
    };
    let mut words = vec!["--batch_size=1".to_owned()];
    for (key, value) in model.settings() {
        words.push(format!("--{key}={value}"));
    }
    let config = Config::resolve(None, &words)?.config;
    let mut engine = engine::build(&Place::Cpu, &config, &model)?;
    engine.load_parameters(&parameters)?;
    let logits = engine.logits(&ids)?;
    println!("{}", serde_json::to_string(&logits).expect("numbers"));
    Ok(())
}
