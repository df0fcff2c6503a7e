//! The page at `/` and what belongs to it, embedded in the program: our own modules, and Chart.js,
//! which `build.rs` takes out of a crate.

use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG};
use axum::http::header::{HeaderMap, IF_NONE_MATCH};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::Problem;

#[cfg(test)]
mod tests;

/// Nothing from elsewhere and nothing inline: what a log line says can never run.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

const INDEX: &str = include_str!("page/index.html");

/// Name, type and text of each file below `/assets/`.
const ASSETS: [(&str, &str, &str); 12] = [
    (
        "style.css",
        "text/css; charset=utf-8",
        include_str!("page/style.css"),
    ),
    ("icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
    ("app.js", JAVASCRIPT, include_str!("page/app.js")),
    ("api.js", JAVASCRIPT, include_str!("page/api.js")),
    ("stream.js", JAVASCRIPT, include_str!("page/stream.js")),
    ("series.js", JAVASCRIPT, include_str!("page/series.js")),
    ("charts.js", JAVASCRIPT, include_str!("page/charts.js")),
    ("panels.js", JAVASCRIPT, include_str!("page/panels.js")),
    ("log.js", JAVASCRIPT, include_str!("page/log.js")),
    ("controls.js", JAVASCRIPT, include_str!("page/controls.js")),
    ("format.js", JAVASCRIPT, include_str!("page/format.js")),
    (
        "chart.js",
        JAVASCRIPT,
        include_str!(concat!(env!("OUT_DIR"), "/chart.js")),
    ),
];

pub(super) async fn index(headers: HeaderMap) -> Response {
    file(&headers, HTML, INDEX)
}

pub(super) async fn asset(
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let found = ASSETS.iter().find(|(known, _, _)| *known == name);
    let (_, kind, text) = found.ok_or_else(|| Problem::not_found("no such file"))?;
    Ok(file(&headers, kind, text))
}

/// A file, or word that the browser has it: another build may stand behind the same address.
fn file(headers: &HeaderMap, kind: &'static str, text: &'static str) -> Response {
    let digest = Sha256::digest(text.as_bytes());
    let digits: String = digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let tag = HeaderValue::from_str(&format!("\"{digits}\"")).expect("hexadecimal digits");
    let fixed = [
        (CONTENT_TYPE, HeaderValue::from_static(kind)),
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (ETAG, tag.clone()),
    ];
    if headers.get(IF_NONE_MATCH) == Some(&tag) {
        return (StatusCode::NOT_MODIFIED, fixed).into_response();
    }
    (fixed, text).into_response()
}
