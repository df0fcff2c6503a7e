//! From what a person names to files: paths, folders, globs, URLs, buckets, datasets of the
//! Hugging Face hub and recipes. Called by `locate`.

mod hub;
mod s3;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::prepare::{Kind, Packing, Place, Remote, SourceFile};
use crate::{Error, Result};

/// Folders within folders are followed so deep.
const DEPTH_MAX: u32 = 64;
const EXTENSIONS: &str = ".txt, .jsonl, .ndjson or .parquet, each also with .gz or .zst";

/// A dataset of the hub that has a name here.
pub(super) struct Recipe {
    pub(super) name: &'static str,
    source: &'static str,
}

/// The column of all of them is `text`.
pub(super) static RECIPES: [Recipe; 4] = [
    Recipe {
        name: "openwebtext",
        source: "hf://datasets/Skylion007/openwebtext",
    },
    Recipe {
        name: "fineweb",
        source: "hf://datasets/HuggingFaceFW/fineweb/sample/10BT",
    },
    Recipe {
        name: "fineweb-10B",
        source: "hf://datasets/HuggingFaceFW/fineweb/sample/10BT",
    },
    Recipe {
        name: "fineweb-edu",
        source: "hf://datasets/HuggingFaceFW/fineweb-edu/sample/10BT",
    },
];

pub(super) fn recipe(name: &str) -> Option<&'static Recipe> {
    RECIPES.iter().find(|recipe| recipe.name == name)
}

/// What sources come to.
pub(super) struct Found {
    pub(super) files: Vec<SourceFile>,
    /// Whether it is one text that was named itself, and so no document among others.
    pub(super) is_one_text: bool,
    /// Where they come from, for `dataset.json`.
    pub(super) source: String,
}

/// The files of `sources`, in their order; those of a folder, a glob or a bucket sorted.
///
/// # Errors
/// [`Error::Data`] if one names nothing, or a server does not tell.
pub(super) fn find(sources: &[String], env: &dyn Fn(&str) -> Option<OsString>) -> Result<Found> {
    let variable = |name: &str| {
        let value = env(name)?.into_string().ok()?;
        (!value.is_empty()).then_some(value)
    };
    let mut files = Vec::new();
    let mut names = Vec::new();
    let mut is_named = true;
    for source in sources {
        let mut name = source.clone();
        let mut found = if let Some(recipe) = recipe(source) {
            is_named = false;
            hub::list(recipe.source, &variable, &mut name)?
        } else if source.starts_with("hf://") {
            is_named = false;
            hub::list(source, &variable, &mut name)?
        } else if source.starts_with("s3://") {
            let (found, is_one) = s3::list(source, &variable)?;
            is_named &= is_one;
            found
        } else if let Some((scheme, _)) = source.split_once("://") {
            vec![of_url(source, scheme)?]
        } else {
            let (found, is_one) = of_path(source)?;
            is_named &= is_one;
            found
        };
        files.append(&mut found);
        names.push(name);
    }
    let is_one_text = is_named && files.len() == 1 && files[0].kind == Kind::Text;
    Ok(Found {
        files,
        is_one_text,
        source: names.join(" "),
    })
}

/// What a name's extensions say.
fn kind_of(name: &str) -> Option<(Kind, Packing)> {
    let (packing, rest) = Packing::of(name);
    Some((Kind::of(rest)?, packing))
}

fn of_url(url: &str, scheme: &str) -> Result<SourceFile> {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    // Whatever else a server gives is taken for a text.
    let (kind, packing) = kind_of(path).unwrap_or((Kind::Text, Packing::of(path).0));
    match scheme {
        "http" | "https" | "file" => Ok(SourceFile {
            name: url.to_owned(),
            kind,
            packing,
            place: Place::There(Remote {
                url: url.to_owned(),
                bearer: None,
                sha256: None,
                hint: "fetch it by other means and give its path",
            }),
            bytes: None,
        }),
        _ => Err(Error::Data(format!(
            "{url}: expected https://, http://, file://, s3:// or hf://, got {scheme}://"
        ))),
    }
}

/// The files that a path or a glob names, and whether it is a file itself.
fn of_path(source: &str) -> Result<(Vec<SourceFile>, bool)> {
    let path = Path::new(source);
    if path.is_dir() {
        let mut files = Vec::new();
        walk(path, DEPTH_MAX, &mut files)?;
        files.sort();
        let files: Vec<SourceFile> = files.iter().filter_map(|path| in_folder(path)).collect();
        return if files.is_empty() {
            Err(Error::Data(format!(
                "{source}: expected files that end with {EXTENSIONS}, got none in the folder"
            )))
        } else {
            Ok((files, false))
        };
    }
    if path.exists() {
        let (kind, packing) = kind_of(source).unwrap_or((Kind::Text, Packing::of(source).0));
        return Ok((vec![local(path, kind, packing)], true));
    }
    if source.contains(['*', '?', '[']) {
        let paths = glob::glob(source)
            .map_err(|error| Error::Data(format!("{source}: expected a glob, got {error}")))?;
        let mut files = Vec::new();
        for path in paths {
            let path = path.map_err(|error| Error::read(error.path())(io_error(&error)))?;
            if path.is_dir() {
                let mut within = Vec::new();
                walk(&path, DEPTH_MAX, &mut within)?;
                within.sort();
                files.extend(within.iter().filter_map(|path| in_folder(path)));
            } else {
                files.extend(in_folder(&path));
            }
        }
        return if files.is_empty() {
            Err(Error::Data(format!(
                "{source}: expected files that end with {EXTENSIONS}, got none that match"
            )))
        } else {
            Ok((files, false))
        };
    }
    let recipes: Vec<&str> = RECIPES.iter().map(|recipe| recipe.name).collect();
    Err(Error::Data(format!(
        "{source}: no such file, and no dataset of that name\n\
         hint: the program can make {}\n\
         hint: and from the Hugging Face hub, {}",
        super::locate::known_names(),
        recipes.join(", ")
    )))
}

fn io_error(error: &glob::GlobError) -> std::io::Error {
    std::io::Error::new(error.error().kind(), error.error().to_string())
}

/// A file of a folder, if its name says that it holds documents.
fn in_folder(path: &Path) -> Option<SourceFile> {
    let (kind, packing) = kind_of(path.to_str()?)?;
    Some(local(path, kind, packing))
}

fn local(path: &Path, kind: Kind, packing: Packing) -> SourceFile {
    SourceFile {
        name: path.display().to_string(),
        kind,
        packing,
        place: Place::Here(path.to_owned()),
        bytes: path.metadata().ok().map(|about| about.len()),
    }
}

/// All files below a folder but hidden ones.
fn walk(dir: &Path, depth: u32, files: &mut Vec<PathBuf>) -> Result<()> {
    if depth == 0 {
        return Err(Error::Data(format!(
            "{}: expected at most {DEPTH_MAX} folders within each other, got more\n\
             hint: a link may lead in a circle",
            dir.display()
        )));
    }
    for entry in fs::read_dir(dir).map_err(Error::read(dir))? {
        let entry = entry.map_err(Error::read(dir))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        if path.is_dir() {
            walk(&path, depth - 1, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// The name that a dataset of this source has unless it is given one: of a file without its
/// extensions, of a folder, of the folder before a glob.
pub(super) fn stem(source: &str) -> &str {
    let is_url = source.contains("://");
    let path = source.split(['?', '#']).next().filter(|_| is_url);
    let path = path.unwrap_or(source);
    let is_glob = |part: &str| part.contains(['*', '?', '[']);
    let parts = path.split('/').filter(|part| !part.is_empty());
    let last = parts.take_while(|part| !is_glob(part)).last();
    let name = Packing::of(last.unwrap_or("text")).1;
    let name = Path::new(name).file_stem().and_then(|name| name.to_str());
    match name {
        Some(name) if !name.starts_with('.') && !name.ends_with(':') => name,
        _ => "text",
    }
}
