//! The embedded files: what they name is there, nothing is inline, and the library is npm's.

use axum::body::to_bytes;

use super::*;

/// SHA-256 of `dist/chart.umd.js` of chart.js 4.5.1 on npm.
const CHART_JS: &str = "ecc3cd1eeb8c34d2178e3f59fd63ec5a3d84358c11730af0b9958dc886d7652a";

/// What stands between `before` and the next `after`, each time.
fn between<'a>(text: &'a str, before: &str, after: char) -> Vec<&'a str> {
    let parts = text.split(before).skip(1);
    parts.filter_map(|part| part.split(after).next()).collect()
}

fn asset_text(name: &str) -> Option<&'static str> {
    let found = ASSETS.iter().find(|(known, _, _)| *known == name);
    found.map(|(_, _, text)| *text)
}

#[test]
fn the_chart_library_is_the_published_one() {
    let text = asset_text("chart.js").expect("the library");
    let digest = Sha256::digest(text.as_bytes());
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digits, CHART_JS);
}

#[test]
fn whatever_the_page_names_is_there() {
    let named = between(INDEX, "\"/assets/", '"');
    assert!(named.len() >= 4, "{named:?}");
    for name in named {
        assert!(asset_text(name).is_some(), "index.html names {name}");
    }
    for (name, _, text) in ASSETS.iter().filter(|(name, ..)| *name != "chart.js") {
        for import in between(text, "from './", '\'') {
            assert!(asset_text(import).is_some(), "{name} imports {import}");
        }
    }
}

/// Each `byId` and `data-field` of the modules, which fail at run time otherwise.
#[test]
fn what_the_modules_look_for_is_in_the_page() {
    for (name, _, text) in ASSETS.iter().filter(|(name, ..)| *name != "chart.js") {
        for id in between(text, "byId('", '\'') {
            assert!(INDEX.contains(&format!("id=\"{id}\"")), "{name}: {id}");
        }
        for field in between(text, " field('", '\'') {
            assert!(
                INDEX.contains(&format!("data-field=\"{field}\"")),
                "{name}: {field}"
            );
        }
    }
}

#[test]
fn nothing_is_inline_and_no_text_becomes_markup() {
    for forbidden in ["<style", " style=", " onclick", " onload", "javascript:"] {
        assert!(!INDEX.contains(forbidden), "index.html has {forbidden:?}");
    }
    for tag in between(INDEX, "<script", '>') {
        assert!(tag.contains("src=\"/assets/"), "an inline script: {tag}");
    }
    assert!(!POLICY.contains("unsafe"), "{POLICY}");
    for (name, _, text) in ASSETS.iter().filter(|(name, ..)| *name != "chart.js") {
        for forbidden in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
        ] {
            assert!(!text.contains(forbidden), "{name} has {forbidden}");
        }
        for forbidden in ["localStorage", "sessionStorage", "document.cookie"] {
            assert!(
                !text.contains(forbidden),
                "{name} keeps something: {forbidden}"
            );
        }
    }
}

#[tokio::test]
async fn a_known_file_is_not_sent_again() {
    let mut headers = HeaderMap::new();
    let first = asset(Path("app.js".to_owned()), headers.clone())
        .await
        .expect("a file");
    assert_eq!(first.status(), StatusCode::OK);
    headers.insert(IF_NONE_MATCH, first.headers()[ETAG].clone());
    let again = asset(Path("app.js".to_owned()), headers.clone())
        .await
        .expect("a file");
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    let body = to_bytes(again.into_body(), 1 << 20).await.expect("a body");
    assert!(body.is_empty());
    let other = asset(Path("style.css".to_owned()), headers)
        .await
        .expect("a file");
    assert_eq!(other.status(), StatusCode::OK);
    let missing = asset(Path("../page.rs".to_owned()), HeaderMap::new()).await;
    assert!(missing.is_err());
}
