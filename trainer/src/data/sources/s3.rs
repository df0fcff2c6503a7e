//! Objects of a bucket: `s3://BUCKET/KEY`, `s3://BUCKET/PREFIX/`, `s3://BUCKET/a/*.parquet`.
//! Called by `sources`.
//!
//! Requests are signed with Signature Version 4 if the environment has keys, else sent as they
//! are, which public buckets allow. The variables are those of the aws cli.

use std::time::Duration;

use rusty_s3::actions::{ListObjectsV2, ListObjectsV2Response, S3Action};
use rusty_s3::{Bucket, Credentials, UrlStyle};

use super::super::fetch;
use super::super::prepare::{Kind, Packing, Place, Remote, SourceFile};
use super::{EXTENSIONS, kind_of};
use crate::{Error, Result};

const REGION: &str = "us-east-1";
/// How long a signature holds: the longest that S3 allows, for a file's turn may come late.
const VALID_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
const LISTING_BYTES_MAX: u64 = 64 << 20;
const PAGES_MAX: u32 = 100_000;
const HINT: &str = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN give access, \
                    AWS_REGION names the bucket's region, AWS_ENDPOINT_URL another service than \
                    AWS";

/// The files that a source names, and whether it is one object.
pub(super) fn list(
    source: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<(Vec<SourceFile>, bool)> {
    let rest = source.strip_prefix("s3://").unwrap_or(source);
    let (name, key) = rest.split_once('/').unwrap_or((rest, ""));
    if name.is_empty() {
        return Err(Error::Data(format!(
            "{source}: expected s3://BUCKET/KEY, got no bucket"
        )));
    }
    let bucket = bucket(source, name, variable)?;
    let credentials = credentials(variable);
    let file = |key: &str, kind: Kind, packing: Packing, bytes: Option<u64>| SourceFile {
        name: format!("s3://{name}/{key}"),
        kind,
        packing,
        place: Place::There(Remote {
            url: bucket
                .get_object(credentials.as_ref(), key)
                .sign(VALID_FOR)
                .to_string(),
            bearer: None,
            sha256: None,
            hint: HINT,
        }),
        bytes,
    };
    let glob_at = key.find(['*', '?', '[']);
    if glob_at.is_none()
        && let Some((kind, packing)) = kind_of(key)
    {
        // Whoever may read an object may not list the bucket.
        return Ok((vec![file(key, kind, packing, None)], true));
    }
    let prefix = &key[..glob_at.unwrap_or(key.len())];
    let mut objects = objects(source, &bucket, credentials.as_ref(), prefix)?;
    objects.sort();
    let pattern = glob_at
        .map(|_| glob::Pattern::new(key))
        .transpose()
        .map_err(|error| Error::Data(format!("{source}: expected a glob, got {error}")))?;
    let options = glob::MatchOptions {
        require_literal_separator: true,
        ..glob::MatchOptions::new()
    };
    let folder = format!("{}/", key.trim_end_matches('/'));
    let wanted = |object: &str| match &pattern {
        Some(pattern) => pattern.matches_with(object, options),
        None => key.is_empty() || object.starts_with(&folder),
    };
    let files: Vec<SourceFile> = objects
        .iter()
        .filter(|(object, _)| wanted(object))
        .filter_map(|(object, bytes)| {
            let (kind, packing) = kind_of(object)?;
            Some(file(object, kind, packing, *bytes))
        })
        .collect();
    if files.is_empty() {
        return Err(Error::Data(format!(
            "{source}: expected objects that end with {EXTENSIONS}, got {} of other names",
            objects.len()
        )));
    }
    Ok((files, false))
}

/// What the environment gives to sign with.
fn credentials(variable: &dyn Fn(&str) -> Option<String>) -> Option<Credentials> {
    let key = variable("AWS_ACCESS_KEY_ID")?;
    let secret = variable("AWS_SECRET_ACCESS_KEY")?;
    Some(match variable("AWS_SESSION_TOKEN") {
        Some(token) => Credentials::new_with_token(key, secret, token),
        None => Credentials::new(key, secret),
    })
}

fn bucket(source: &str, name: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Bucket> {
    let region = variable("AWS_REGION")
        .or_else(|| variable("AWS_DEFAULT_REGION"))
        .unwrap_or_else(|| REGION.to_owned());
    let endpoint = variable("AWS_ENDPOINT_URL_S3").or_else(|| variable("AWS_ENDPOINT_URL"));
    // Names with dots do not fit the certificates of AWS; other services may know no such hosts.
    let style = match &endpoint {
        None if !name.contains('.') => UrlStyle::VirtualHost,
        _ => UrlStyle::Path,
    };
    let endpoint = endpoint.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
    let fault = |what: String| Error::Data(format!("{source}: {what}"));
    let url = endpoint
        .parse()
        .map_err(|error| fault(format!("expected a URL as AWS_ENDPOINT_URL, got {error}")))?;
    Bucket::new(url, style, name.to_owned(), region)
        .map_err(|error| fault(format!("expected s3://BUCKET/KEY, got {error}")))
}

/// Key and size of every object whose key begins with `prefix`.
fn objects(
    source: &str,
    bucket: &Bucket,
    credentials: Option<&Credentials>,
    prefix: &str,
) -> Result<Vec<(String, Option<u64>)>> {
    let fault = |what: String| Error::Data(format!("{source}: {what}\nhint: {HINT}"));
    let mut objects = Vec::new();
    let mut token: Option<String> = None;
    for _ in 0..PAGES_MAX {
        let mut action = ListObjectsV2::new(bucket, credentials);
        action.with_prefix(prefix);
        if let Some(token) = &token {
            action.with_continuation_token(token.as_str());
        }
        let url = action.sign(VALID_FOR);
        let mut answer = fetch::get(url.as_str(), None)
            .map_err(|what| fault(format!("cannot list the bucket: {what}")))?;
        let body = answer.body_mut().with_config().limit(LISTING_BYTES_MAX);
        let text = body
            .read_to_string()
            .map_err(|error| fault(error.to_string()))?;
        let page: ListObjectsV2Response = ListObjectsV2::parse_response(&text)
            .map_err(|error| fault(format!("not a listing of a bucket: {error}")))?;
        objects.extend(
            page.contents
                .into_iter()
                .map(|object| (object.key, object.size)),
        );
        token = page.next_continuation_token;
        if token.is_none() {
            break;
        }
    }
    Ok(objects)
}
