//! The OpenAPI document, made of the types and handlers themselves.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{control, files, health, job, logs, stream};

/// Everything that `http` answers.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Anneal agent",
        description = "What an agent shows of its job, and what may be asked of it.",
        version = "1",
        license(name = "MIT OR Apache-2.0"),
    ),
    paths(
        health::livez, health::readyz, health::ready_check, health::version, health::metrics,
        job::status, job::events, job::series, job::checkpoints, job::config,
        logs::page, stream::stream, files::list, files::file,
        control::checkpoint, control::stop, control::keepalive, control::drill, control::limits,
    ),
    security(("bearer" = [])),
    modifiers(&Bearer),
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        components.add_security_scheme("bearer", scheme);
    }
}

/// The document as JSON.
pub fn document() -> String {
    let text = Document::openapi().to_pretty_json();
    text.expect("the document holds texts and numbers")
}

pub(super) async fn serve() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document()).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use expect_test::expect_file;
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_document_is_the_one_that_was_looked_at() {
        expect_file!["openapi.json"].assert_eq(&(document() + "\n"));
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_operation_has_a_name_of_its_own() {
        let document: Value = serde_json::from_str(&document()).unwrap();
        assert_eq!(
            document["openapi"].as_str().unwrap().split('.').next(),
            Some("3")
        );
        fn references(value: &Value, found: &mut BTreeSet<String>) {
            match value {
                Value::Array(values) => values.iter().for_each(|it| references(it, found)),
                Value::Object(fields) => {
                    found.extend(
                        fields
                            .get("$ref")
                            .and_then(Value::as_str)
                            .map(str::to_owned),
                    );
                    fields.values().for_each(|it| references(it, found));
                }
                _ => {}
            }
        }
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() > 10);
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        let mut names = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for operation in operations.as_object().unwrap().values() {
                let name = operation["operationId"].as_str().unwrap();
                assert!(names.insert(name.to_owned()), "{name} of {path}");
                assert!(
                    operation["responses"]
                        .as_object()
                        .is_some_and(|it| !it.is_empty())
                );
            }
        }
        assert_eq!(names.len(), 19);
    }
}
