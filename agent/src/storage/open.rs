//! From what people write to a store. Called by the command line.

use std::sync::Arc;

use super::s3::{S3, Settings};
use super::{Storage, StorageError, local::Local};

/// Opens `s3://bucket/prefix`, `file:///folder` or a folder. A bucket is not asked anything yet.
/// The store makes one attempt at everything: see [`super::retry::Retry`].
///
/// # Errors
/// If it is none of these, or the folder cannot be used.
pub async fn open(location: &str) -> Result<Arc<dyn Storage>, StorageError> {
    let Some((scheme, rest)) = location.split_once("://") else {
        return Ok(Arc::new(Local::open(location)?));
    };
    match scheme {
        "s3" => {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let settings = Settings::default();
            Ok(Arc::new(S3::open(bucket, prefix, settings).await?))
        }
        "file" if rest.starts_with('/') => Ok(Arc::new(Local::open(rest)?)),
        _ => {
            // The rest is not shown: addresses may carry passwords.
            let detail = "expected s3://bucket/prefix, file:///folder or a folder";
            Err(StorageError::permanent(
                &format!("{scheme}://…"),
                "open",
                "",
                detail,
            ))
        }
    }
}
