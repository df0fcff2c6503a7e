//! Who may read and who may command: bearer tokens with two scopes, and what is asked of a request
//! where there are none. Tokens come from the environment or a file, never from a URL.

use std::net::IpAddr;

use axum::http::{HeaderMap, StatusCode, header};
use sha2::{Digest, Sha256};

use super::problem::Problem;
use super::serve::Listen;

/// A token must not be guessed.
const TOKEN_BYTES_MIN: usize = 16;

/// What a request wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    Read,
    Control,
}

/// The tokens, as digests: comparing those takes the same time for any token.
#[derive(Clone, Debug, Default)]
pub struct Access {
    read: Option<[u8; 32]>,
    control: Option<[u8; 32]>,
}

impl Access {
    /// With these tokens; the one for control may do everything.
    ///
    /// # Errors
    /// If one is too short to be a secret, or both are the same.
    pub fn new(read: Option<&str>, control: Option<&str>) -> Result<Self, String> {
        for (name, token) in [("AGENT_READ_TOKEN", read), ("AGENT_TOKEN", control)] {
            if token.is_some_and(|token| token.len() < TOKEN_BYTES_MIN) {
                return Err(format!(
                    "{name}: expected a token of {TOKEN_BYTES_MIN} bytes at least\n\
                     hint: openssl rand -hex 32"
                ));
            }
        }
        if read.is_some() && read == control {
            return Err(
                "AGENT_READ_TOKEN and AGENT_TOKEN: expected two tokens, got one".to_owned(),
            );
        }
        Ok(Self {
            read: read.map(digest),
            control: control.map(digest),
        })
    }

    /// Tokens of the environment: `AGENT_TOKEN` and `AGENT_READ_TOKEN`, or files that
    /// `AGENT_TOKEN_FILE` and `AGENT_READ_TOKEN_FILE` name.
    ///
    /// # Errors
    /// If a file cannot be read, or a token is no secret.
    pub fn from_env(
        variable: impl Fn(&str) -> Option<String>,
        mut learn: impl FnMut(&str),
    ) -> Result<Self, String> {
        let mut token = |name: &str| -> Result<Option<String>, String> {
            let found = match (variable(name), variable(&format!("{name}_FILE"))) {
                (Some(token), _) => Some(token),
                (None, Some(path)) => Some(
                    std::fs::read_to_string(&path)
                        .map_err(|error| format!("{name}_FILE: {path}: {error}"))?,
                ),
                (None, None) => None,
            };
            let found = found.map(|token| token.trim().to_owned());
            let found = found.filter(|token| !token.is_empty());
            found.iter().for_each(|token| learn(token));
            Ok(found)
        };
        let (read, control) = (token("AGENT_READ_TOKEN")?, token("AGENT_TOKEN")?);
        Self::new(read.as_deref(), control.as_deref())
    }

    /// Whether anybody who reaches the server may do anything.
    pub fn is_open(&self) -> bool {
        self.read.is_none() && self.control.is_none()
    }

    /// Whether the server may listen there: beyond this machine only with a token.
    pub fn may_listen(&self, listen: &Listen) -> bool {
        !self.is_open() || listen.is_private()
    }

    pub(crate) fn check(&self, headers: &HeaderMap, scope: Scope) -> Result<(), Problem> {
        if self.is_open() {
            return no_stranger(headers);
        }
        let unauthorized =
            |detail: &str| Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail);
        let given = headers
            .get(header::AUTHORIZATION)
            .ok_or_else(|| unauthorized("expected Authorization: Bearer and a token"))?;
        let given = given.to_str().ok().and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then_some(token.trim())
        });
        let given = digest(given.ok_or_else(|| unauthorized("expected a bearer token"))?);
        // Both are compared whatever comes out of the first.
        let control = self.control.is_some_and(|known| same(&known, &given));
        let read = self.read.is_some_and(|known| same(&known, &given));
        match scope {
            _ if control => Ok(()),
            Scope::Read if read => Ok(()),
            Scope::Control if read => Err(Problem::new(
                StatusCode::FORBIDDEN,
                "forbidden",
                "this token may only read",
            )),
            _ => Err(unauthorized("the token is not known")),
        }
    }
}

/// Without tokens whoever reaches loopback may do anything; a page in a browser on this machine
/// reaches it too. It cannot choose `Host` and `Origin`, so these tell.
fn no_stranger(headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let forbidden = |detail: &str| Problem::new(StatusCode::FORBIDDEN, "forbidden", detail);
    let host = text(header::HOST).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|byte| byte.is_ascii_digit()) {
            name
        } else {
            host
        }
    });
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let ours = name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    if !ours {
        return Err(forbidden(
            "without a token only localhost is served; set AGENT_TOKEN",
        ));
    }
    match text(header::ORIGIN) {
        Some(origin) if origin.split_once("://").map(|(_, rest)| rest) != Some(host) => Err(
            forbidden("a page of another origin asks; set AGENT_TOKEN to allow this"),
        ),
        _ => Ok(()),
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Every byte is looked at, whatever the first ones are.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |found, (x, y)| found | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: &str = "reading-token-0123456789";
    const CONTROL: &str = "control-token-0123456789";

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (name.clone(), value.parse().unwrap()))
            .collect()
    }

    fn status(access: &Access, token: &str, scope: Scope) -> u16 {
        let headers = headers(&[(header::AUTHORIZATION, token)]);
        access
            .check(&headers, scope)
            .map_or_else(|problem| problem.status, |()| 200)
    }

    #[test]
    fn a_token_opens_its_scope_and_nothing_else() {
        let access = Access::new(Some(READ), Some(CONTROL)).unwrap();
        let bearer = |token: &str| format!("Bearer {token}");
        for (token, read, control) in [
            (bearer(READ), 200, 403),
            (bearer(CONTROL), 200, 200),
            (format!("bearer {CONTROL}"), 200, 200),
            (bearer("control-token-012345678"), 401, 401),
            (bearer(""), 401, 401),
            (format!("Basic {CONTROL}"), 401, 401),
            (CONTROL.to_owned(), 401, 401),
        ] {
            assert_eq!(status(&access, &token, Scope::Read), read, "{token}");
            assert_eq!(status(&access, &token, Scope::Control), control, "{token}");
        }
        let nothing = access.check(&HeaderMap::new(), Scope::Read);
        assert_eq!(nothing.unwrap_err().status, 401);
        // A reader's token alone does not leave the door to control open.
        let reader = Access::new(Some(READ), None).unwrap();
        assert_eq!(status(&reader, &bearer(READ), Scope::Control), 403);
    }

    #[test]
    fn without_a_token_only_this_machine_is_served_and_no_other_page() {
        let open = Access::default();
        let any = Listen::Tcp("0.0.0.0:1".parse().unwrap());
        let own = Listen::Tcp("127.0.0.1:1".parse().unwrap());
        assert!(!open.may_listen(&any) && open.may_listen(&own));
        assert!(open.may_listen(&Listen::Unix("agent.sock".into())));
        assert!(Access::new(None, Some(CONTROL)).unwrap().may_listen(&any));
        for (host, origin, allowed) in [
            ("localhost:8080", None, true),
            ("127.0.0.1:8080", None, true),
            ("[::1]:8080", None, true),
            ("localhost:8080", Some("http://localhost:8080"), true),
            ("localhost:8080", Some("http://localhost:9090"), false),
            ("localhost:8080", Some("https://evil.example"), false),
            ("localhost:8080", Some("null"), false),
            ("evil.example:8080", None, false),
            ("", None, false),
        ] {
            let mut pairs = vec![(header::HOST, host)];
            pairs.extend(origin.map(|origin| (header::ORIGIN, origin)));
            let checked = open.check(&headers(&pairs), Scope::Control);
            assert_eq!(checked.is_ok(), allowed, "{host} {origin:?}");
        }
    }

    #[test]
    fn tokens_come_from_the_environment_or_a_file_and_must_be_long() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, format!("{CONTROL}\n")).unwrap();
        let file = file.to_str().unwrap().to_owned();
        let mut learned = Vec::new();
        let variable = |name: &str| match name {
            "AGENT_TOKEN_FILE" => Some(file.clone()),
            "AGENT_READ_TOKEN" => Some(READ.to_owned()),
            _ => None,
        };
        let access = Access::from_env(variable, |token| learned.push(token.to_owned())).unwrap();
        assert_eq!(learned, [READ, CONTROL]);
        assert_eq!(
            status(&access, &format!("Bearer {CONTROL}"), Scope::Control),
            200
        );
        let missing = |name: &str| (name == "AGENT_TOKEN_FILE").then(|| "/no/such/file".to_owned());
        let error = Access::from_env(missing, |_| {}).unwrap_err();
        assert!(
            error.starts_with("AGENT_TOKEN_FILE: /no/such/file"),
            "{error}"
        );
        assert!(
            Access::new(None, Some("short"))
                .unwrap_err()
                .contains("16 bytes")
        );
        assert!(Access::new(Some(READ), Some(READ)).is_err());
    }
}
