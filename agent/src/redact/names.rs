//! The names of environment variables that hold secrets: the one place that lists them.

/// Secrets that the agent is given for its own work: the store, the provider's API, its own HTTP
/// API. A trainer has no use for them.
const AGENTS: [&str; 28] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "CONTAINER_API_KEY",
    "VAST_API_KEY",
    "RUNPOD_API_KEY",
    "JL_API_KEY",
    "LAMBDA_API_KEY",
    "LAMBDA_KEY",
    "MODAL_TOKEN_ID",
    "MODAL_TOKEN_SECRET",
    "MODAL_IDENTITY_TOKEN",
    "PAPERSPACE_API_KEY",
    "CLOUDFLARE_API_TOKEN",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "AZURE_CLIENT_SECRET",
    "AZURE_STORAGE_KEY",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "JUPYTER_TOKEN",
    "OPEN_BUTTON_TOKEN",
    "AGENT_WEBHOOK",
];

/// Whether the variable is a secret of the agent's, kept from the trainer.
pub fn is_the_agents(name: &str) -> bool {
    let without_file = name.strip_suffix("_FILE").unwrap_or(name);
    let own = name.starts_with("AGENT_") && looks_secret(without_file);
    own || AGENTS.contains(&name)
}

/// Whether the variable's value must not be shown: one of the agent's, or one that is secret by the
/// look of its name (`HF_TOKEN`, `WANDB_API_KEY`, …).
pub fn is_secret(name: &str) -> bool {
    let only_says_where = ["_FILE", "_URI", "_URL"]
        .iter()
        .any(|end| name.ends_with(end));
    !only_says_where
        && name != "GOOGLE_APPLICATION_CREDENTIALS"
        && (AGENTS.contains(&name) || looks_secret(name))
}

fn looks_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let ends = ["TOKEN", "_KEY", "APIKEY", "_KEY_ID"];
    let parts = ["SECRET", "PASSWORD", "PASSWD", "CREDENTIAL"];
    !name.contains("PUBLIC")
        && (ends.iter().any(|end| name.ends_with(end)) || parts.iter().any(|p| name.contains(p)))
}
