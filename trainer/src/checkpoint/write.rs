//! Writes one checkpoint: under a temporary name, the manifest last, then renamed into place.
//! Called by the background thread of `Checkpoints`.

use std::collections::BTreeMap;
use std::path::Path;

use protocol::{Manifest, RunDir};
use serde_json::{Value, json};

use super::Snapshot;
use super::files::{self, HashingFile};
use crate::engine::{EngineState, LossScale, NamedTensor};
use crate::error::Result;

// Parameters go to the file as they lie in memory, and safetensors is little-endian.
const _: () = assert!(cfg!(target_endian = "little"));

/// Writes `snapshot` as the checkpoint of its step. One of the same step that is there already is
/// moved aside for the moment of the exchange, and left there for `retain` to delete.
///
/// # Errors
/// [`crate::Error::Write`]. The older checkpoints stay as they were and nothing of this one
/// remains, unless only the last fsync failed.
pub(super) fn write(run: &RunDir, snapshot: &Snapshot) -> Result<Manifest> {
    let step = snapshot.state.step;
    let temporary = run.checkpoints().join(format!(
        "{}{}-{}",
        RunDir::TEMPORARY_PREFIX,
        RunDir::checkpoint_name(step),
        std::process::id()
    ));
    let written = write_files(&temporary, snapshot).and_then(|manifest| {
        move_in(run, &temporary, step)?;
        Ok(manifest)
    });
    if written.is_err() && files::is_there(&temporary) {
        // The first error is the one to report; `Checkpoints::open` deletes what is left over.
        drop(files::remove(&temporary));
    }
    written
}

fn write_files(folder: &Path, snapshot: &Snapshot) -> Result<Manifest> {
    let Snapshot { state, engine, .. } = snapshot;
    if files::is_there(folder) {
        files::remove(folder)?;
    }
    files::create_dir_all(folder)?;
    let mut entries = BTreeMap::new();

    let entry = write_tensors(
        &folder.join(RunDir::MODEL),
        &[
            ("format", "pt".to_owned()),
            ("step", state.step.to_string()),
        ],
        &[("", &engine.parameters)],
    )?;
    entries.insert(RunDir::MODEL.to_owned(), entry);

    let entry = write_tensors(
        &folder.join(RunDir::OPTIMIZER),
        &optimizer_metadata(engine),
        &[
            ("exp_avg.", &engine.exp_avg),
            ("exp_avg_sq.", &engine.exp_avg_sq),
        ],
    )?;
    entries.insert(RunDir::OPTIMIZER.to_owned(), entry);

    // The manifest's own values stand here a second time, under a checksum.
    let val_loss = snapshot.val_loss.filter(|loss| loss.is_finite());
    let mut fields = serde_json::to_value(state).expect("a state holds strings and numbers");
    fields["val_loss"] = json!(val_loss);
    fields["config_hash"] = json!(snapshot.config_hash);
    let text = serde_json::to_string_pretty(&fields).expect("a value is valid JSON");
    let entry = files::write_file(&folder.join(RunDir::STATE), text.as_bytes())?;
    entries.insert(RunDir::STATE.to_owned(), entry);

    if let Some((name, contents)) = &snapshot.tokenizer {
        assert!(
            [RunDir::TOKENIZER, RunDir::VOCAB].contains(&name.as_str()),
            "a tokenizer's file is {} or {}, not {name}",
            RunDir::TOKENIZER,
            RunDir::VOCAB
        );
        let entry = files::write_file(&folder.join(name), contents)?;
        entries.insert(name.clone(), entry);
    }

    let manifest = Manifest {
        format_version: Manifest::FORMAT_VERSION,
        step: state.step,
        val_loss,
        config_hash: snapshot.config_hash.clone(),
        time: jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string(),
        files: entries,
    };
    files::write_file(
        &folder.join(RunDir::MANIFEST),
        manifest.to_json().as_bytes(),
    )?;
    files::sync_dir(folder)?;
    Ok(manifest)
}

/// Gives a finished checkpoint its name. Killed between the two renames, the older one of the same
/// step is still found where it was set aside.
fn move_in(run: &RunDir, temporary: &Path, step: u64) -> Result<()> {
    let home = run.checkpoint(step);
    if files::is_there(&home) {
        let aside = files::set_aside(run, step);
        if files::is_there(&aside) {
            files::discard(run, &aside)?;
        }
        files::rename(&home, &aside)?;
        if let Err(error) = files::rename(temporary, &home) {
            files::rename(&aside, &home)?;
            return Err(error);
        }
    } else {
        files::rename(temporary, &home)?;
    }
    files::sync_dir(&run.checkpoints())
}

/// Of the optimizer's file: what is no tensor.
fn optimizer_metadata(engine: &EngineState) -> Vec<(&'static str, String)> {
    let mut metadata = vec![
        ("format", "pt".to_owned()),
        ("updates", engine.updates.to_string()),
    ];
    if let Some(LossScale { scale, good_steps }) = engine.loss_scale {
        metadata.push(("loss_scale", scale.to_string()));
        metadata.push(("loss_scale_good_steps", good_steps.to_string()));
    }
    metadata
}

/// Writes groups of tensors, each with a prefix to its names, as one safetensors file: the length
/// of the header in 8 bytes, the header (JSON, padded to 8 bytes), the data. Sorted throughout, so
/// that equal tensors make equal files. The data goes from where it lies: no second copy of it.
fn write_tensors(
    path: &Path,
    metadata: &[(&str, String)],
    groups: &[(&str, &Vec<NamedTensor>)],
) -> Result<protocol::FileEntry> {
    let mut tensors = BTreeMap::new();
    for (prefix, group) in groups {
        for tensor in *group {
            assert_eq!(
                tensor.shape.iter().product::<usize>(),
                tensor.data.len(),
                "{}: shape {:?} and data differ",
                tensor.name,
                tensor.shape
            );
            let name = format!("{prefix}{}", tensor.name);
            let twice = tensors.insert(name, tensor);
            assert!(twice.is_none(), "two tensors are named {}", tensor.name);
        }
    }

    let mut header = serde_json::Map::new();
    let metadata = metadata
        .iter()
        .map(|(key, value)| ((*key).to_owned(), Value::from(value.as_str())));
    header.insert("__metadata__".to_owned(), Value::Object(metadata.collect()));
    let mut offset = 0;
    for (name, tensor) in &tensors {
        let end = offset + size_of_val(tensor.data.as_slice());
        let about = json!({
            "dtype": "F32",
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        });
        header.insert(name.clone(), about);
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = HashingFile::create(path)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    for tensor in tensors.values() {
        file.write(bytemuck::cast_slice(&tensor.data))?;
    }
    file.finish()
}
