//! What the environment says: credentials, tokens, and who is the container's first process. Called
//! by the doctor. Values of secrets are never shown, only that they are there.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use super::{Asked, Check};
use crate::error::ExitStatus;
use crate::http::{Access, Listen};

/// What signs requests to a bucket, and what else there may be for a provider's API.
pub(super) fn credentials(asked: &Asked) -> Check {
    const PROVIDERS: [&str; 7] = [
        "CONTAINER_API_KEY",
        "VAST_API_KEY",
        "RUNPOD_API_KEY",
        "LAMBDA_API_KEY",
        "LAMBDA_KEY",
        "JL_API_KEY",
        "PAPERSPACE_API_KEY",
    ];
    let set = |name: &str| (asked.environment)(name).is_some_and(|value| !value.is_empty());
    let (id, secret) = (set("AWS_ACCESS_KEY_ID"), set("AWS_SECRET_ACCESS_KEY"));
    let others = [
        "AWS_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ];
    let mut there: Vec<&str> = Vec::new();
    if id && secret {
        there.push("AWS_ACCESS_KEY_ID with its secret");
    }
    there.extend(others.into_iter().filter(|name| set(name)));
    let home = (asked.environment)("HOME").unwrap_or_default();
    if Path::new(&home).join(".aws/credentials").is_file() {
        there.push("~/.aws/credentials");
    }
    let for_store = !there.is_empty();
    there.extend(PROVIDERS.into_iter().filter(|name| set(name)));
    let found = if there.is_empty() {
        "none".to_owned()
    } else {
        there.join(", ")
    };
    if id != secret {
        let (has, lacks) = if id {
            ("ID", "secret")
        } else {
            ("secret", "ID")
        };
        return Check::error(
            "credentials",
            ExitStatus::Failed,
            format!("{found}; the {has} of an AWS key without its {lacks}"),
            "set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither",
        );
    }
    let bucket = asked
        .store
        .as_deref()
        .is_some_and(|store| store.starts_with("s3://"));
    if bucket && !for_store {
        return Check::warning(
            "credentials",
            format!("{found} for a bucket, unless the machine has a role"),
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or an instance profile",
        );
    }
    Check::ok("credentials", found)
}

/// Who may reach the API, and whether its address is free.
pub(super) fn tokens(asked: &Asked) -> Check {
    let variable = |name: &str| (asked.environment)(name);
    let access = match Access::from_env(variable, |_| ()) {
        Ok(access) => access,
        Err(text) => {
            let (found, hint) = text
                .split_once("\nhint: ")
                .unwrap_or((&text, "AGENT_TOKEN"));
            return Check::error("api", ExitStatus::Usage, found, hint);
        }
    };
    let token = if access.is_open() {
        "no token"
    } else {
        "a token"
    };
    let Some(listen) = &asked.listen else {
        return Check::ok("api", format!("off, {token}"));
    };
    if !access.may_listen(listen) {
        return Check::error(
            "api",
            ExitStatus::Usage,
            format!("{listen} with {token}: anybody could stop the job, so agent run refuses"),
            "set AGENT_TOKEN (openssl rand -hex 32), or listen on 127.0.0.1",
        );
    }
    let (free, reach) = match listen {
        Listen::Tcp(address) if listen.is_private() => {
            (TcpListener::bind(address), "this machine only")
        }
        Listen::Tcp(address) => (TcpListener::bind(address), "others, too"),
        Listen::Unix(path) => {
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            return match folder.is_none_or(Path::is_dir) {
                true => Check::ok("api", format!("{listen}, reached by this user only")),
                false => Check::error(
                    "api",
                    ExitStatus::Usage,
                    format!("{listen}: its folder is not there"),
                    "mkdir it first",
                ),
            };
        }
    };
    match free {
        Ok(_) => Check::ok(
            "api",
            format!("{listen} is free, {token}, reached by {reach}"),
        ),
        Err(error) => Check::warning(
            "api",
            format!("{listen} cannot be had: {error}"),
            "another agent at work? --listen with another port",
        ),
    }
}

/// Whether signals and orphans reach somebody who knows what to do.
pub(super) fn first_process(root: &Path) -> Check {
    if std::process::id() == 1 {
        return Check::ok(
            "pid 1",
            "the agent itself: it gets the signals and reaps orphans",
        );
    }
    let name = fs::read_to_string(root.join("proc/1/comm")).unwrap_or_default();
    let name = name.trim();
    match name {
        "sh" | "bash" | "dash" | "ash" | "zsh" => Check::warning(
            "pid 1",
            format!("{name}: a shell keeps SIGTERM to itself, the last save would be lost"),
            "make the agent the ENTRYPOINT (exec form), or exec agent in the script",
        ),
        "" => Check::ok("pid 1", "unknown; the agent reaps what is below it"),
        name => Check::ok("pid 1", format!("{name}; the agent reaps what is below it")),
    }
}
