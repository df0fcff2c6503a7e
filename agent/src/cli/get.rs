//! `agent artifacts get`: files of a job brought to this machine, from its agent or its store, and
//! never half of one under its name.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Component, Path, PathBuf};

use protocol::RunDir;
use sha2::{Digest as _, Sha256};

use super::target::{Target, TargetArgs};
use crate::error::{Error, ExitStatus};

/// What is asked for at once.
const RANGE_BYTES: u64 = 8 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Get {
    /// A file as `agent artifacts` lists it, or a folder such as checkpoints/step_0000000500.
    name: String,
    /// Where to put it.
    #[arg(long, default_value = ".")]
    out: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
}

/// A file of a job, as it can be fetched.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Artifact {
    /// Below the run directory.
    pub(super) path: String,
    /// In the store, where it is listed from there.
    pub(super) key: Option<String>,
    pub(super) bytes: u64,
    pub(super) sha256: Option<String>,
}

pub(super) async fn get(args: &Get, print: &mut dyn FnMut(&str)) -> Result<ExitStatus, Error> {
    let target = args.target.open().await?;
    let found = target.files().await?;
    let chosen = choose(&found, &args.name);
    if chosen.is_empty() {
        let what = format!("{}: expected an artifact of the job, found none", args.name);
        return Err(Error::Bad(format!(
            "{what}\nhint: `agent artifacts` lists them"
        )));
    }
    for (artifact, place) in chosen {
        let path = args.out.join(&place);
        fetch(&target, artifact, &path).await?;
        let checked = match artifact.sha256 {
            Some(_) => "its digest is right",
            None => "no digest is known",
        };
        print(&format!(
            "{}: {} bytes, {checked}",
            path.display(),
            artifact.bytes
        ));
    }
    Ok(ExitStatus::Completed)
}

/// The files that a name stands for, each once, and where each goes below the output folder.
fn choose<'a>(found: &'a [Artifact], name: &str) -> Vec<(&'a Artifact, PathBuf)> {
    let name = name.trim_end_matches('/');
    let (parent, _) = name.rsplit_once('/').unwrap_or_default();
    let mut chosen: Vec<(&Artifact, PathBuf)> = Vec::new();
    for artifact in found {
        let names = [Some(&artifact.path), artifact.key.as_ref()];
        let place = names.into_iter().flatten().find_map(|full| {
            let below = full.strip_prefix(name)?;
            let whole = below.is_empty() || below.starts_with('/');
            let place = Path::new(full.strip_prefix(parent)?.trim_start_matches('/'));
            // What an agent lists decides over nothing outside the folder.
            let plain = place
                .components()
                .all(|it| matches!(it, Component::Normal(_)));
            (whole && plain).then(|| place.to_owned())
        });
        // The newest of two with one path comes first.
        if let Some(place) = place.filter(|place| chosen.iter().all(|(_, known)| known != place)) {
            chosen.push((artifact, place));
        }
    }
    chosen
}

/// Brings a file to `path`: under another name until it is whole, right and on the disk.
async fn fetch(target: &Target, artifact: &Artifact, path: &Path) -> Result<(), Error> {
    let local = || Error::machine(path.display().to_string());
    let folder = path.parent().filter(|it| *it != Path::new(""));
    let folder = folder.unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(local())?;
    let name = path
        .file_name()
        .expect("a file has a name")
        .to_string_lossy();
    let partial = folder.join(format!(".{name}.part"));
    let mut file = File::create(&partial).map_err(local())?;
    let mut hash = Sha256::new();
    let mut at = 0;
    while at < artifact.bytes {
        let range = at..artifact.bytes.min(at + RANGE_BYTES);
        let bytes = target.range(artifact, range).await?;
        if bytes.is_empty() {
            break;
        }
        hash.update(&bytes);
        file.write_all(&bytes).map_err(local())?;
        at += bytes.len() as u64;
    }
    let digest = hash.finalize();
    let sha256: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let wanted = artifact.sha256.as_ref();
    if at != artifact.bytes || wanted.is_some_and(|wanted| *wanted != sha256) {
        fs::remove_file(&partial).ok();
        let wanted = wanted.map_or_else(String::new, |it| format!(" of sha256 {it}"));
        return Err(Error::Bad(format!(
            "{}: expected {} bytes{wanted}, got {at} of {sha256}",
            artifact.path, artifact.bytes
        )));
    }
    file.sync_all().map_err(local())?;
    fs::rename(&partial, path).map_err(local())?;
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(local())
}

/// A checkpoint's file as the run directory has it.
pub(super) fn path_of(step: u64, name: &str) -> String {
    format!("checkpoints/{}/{name}", RunDir::checkpoint_name(step))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::job::Job;
    use crate::storage::Storage;
    use crate::storage::memory::Memory;

    fn artifact(path: &str, key: Option<&str>, bytes: &[u8]) -> Artifact {
        let digest = Sha256::digest(bytes);
        Artifact {
            path: path.to_owned(),
            key: key.map(str::to_owned),
            bytes: bytes.len() as u64,
            sha256: Some(digest.iter().map(|byte| format!("{byte:02x}")).collect()),
        }
    }

    #[test]
    fn a_name_is_a_file_or_a_folder_and_leads_nowhere_else() {
        let found = [
            artifact("checkpoints/step_7/model", Some("data/1/7-ab/model"), b"a"),
            artifact("checkpoints/step_7/state", None, b"b"),
            artifact("checkpoints/step_70/model", None, b"c"),
            artifact("checkpoints/step_7/../../../etc/passwd", None, b"d"),
        ];
        let places = |name: &str| -> Vec<String> {
            let chosen = choose(&found, name).into_iter();
            chosen
                .map(|(_, place)| place.display().to_string())
                .collect()
        };
        assert_eq!(
            places("checkpoints/step_7"),
            ["step_7/model", "step_7/state"]
        );
        assert_eq!(places("checkpoints/step_7/model"), ["model"]);
        assert_eq!(places("data/1/7-ab/model"), ["model"]);
        assert_eq!(places("checkpoints/").len(), 3);
        assert!(places("step_7").is_empty() && places("checkpoints/step").is_empty());
    }

    #[tokio::test]
    async fn a_file_is_there_when_it_is_right() {
        let dir = tempfile::tempdir().unwrap();
        let (store, job) = (Memory::default(), Job::new("j").unwrap());
        store.put("j/data/a", "weights".into()).await.unwrap();
        let target = Target::Store {
            store: Arc::new(store),
            job,
        };
        let mut artifact = artifact("checkpoints/step_7/a", Some("data/a"), b"weights");
        let path = dir.path().join("deep/a");
        fetch(&target, &artifact, &path).await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"weights");
        artifact.sha256 = Some("00".repeat(32));
        let other = dir.path().join("b");
        let error = fetch(&target, &artifact, &other).await.unwrap_err();
        assert!(error.to_string().contains("sha256 0000"), "{error}");
        artifact.bytes = 99;
        fetch(&target, &artifact, &other).await.unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
