//! What a failed request means: gone, later, or never without somebody's help. Called by `s3`.

use std::error::Error;
use std::time::Duration;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::super::StorageError;

/// The longest text of a store that is passed on.
const DETAIL_CHARS_MAX: usize = 500;

/// An operation's error as the SDK types it.
pub(super) trait Failure: ProvideErrorMetadata + Error + 'static {}

impl<E: ProvideErrorMetadata + Error + 'static> Failure for E {}

/// A request that did not succeed.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    /// Of the answer, if there was one.
    pub(super) status: Option<u16>,
    code: Option<String>,
    detail: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// No answer, or not all of one.
    Connection,
    /// Never sent.
    Unsent,
    Answered,
}

impl Failed {
    pub(super) fn new<E: Failure>(error: &SdkError<E>) -> Self {
        let kind = match error {
            SdkError::ServiceError(_) => Kind::Answered,
            SdkError::ConstructionFailure(_) => Kind::Unsent,
            SdkError::DispatchFailure(e) if e.is_user() => Kind::Unsent,
            _ => Kind::Connection,
        };
        let status = error.raw_response().map(|answer| answer.status().as_u16());
        // A cut answer keeps its status, which says nothing then.
        let status = status.filter(|_| kind == Kind::Answered);
        let service = error.as_service_error();
        let detail = match service.and_then(|e| e.message()) {
            Some(message) => message.to_owned(),
            None if kind == Kind::Answered => String::new(),
            None => chain(error),
        };
        Self {
            status,
            code: service.and_then(|e| e.code()).map(str::to_owned),
            detail: detail.chars().take(DETAIL_CHARS_MAX).collect(),
            kind,
        }
    }

    /// No answer within the limit.
    pub(super) fn silent(limit: Duration) -> Self {
        Self {
            status: None,
            code: None,
            detail: format!("no answer within {} s", limit.as_secs()),
            kind: Kind::Connection,
        }
    }

    /// An answer that ended before its body did.
    pub(super) fn cut(error: &(dyn Error + 'static)) -> Self {
        Self {
            status: None,
            code: None,
            detail: chain(error),
            kind: Kind::Connection,
        }
    }

    pub(super) fn with_code(self, code: &str) -> Self {
        Self {
            code: Some(code.to_owned()),
            ..self
        }
    }

    /// The object or upload is definitely not there. A bare 404 is not enough: any web server
    /// says so to a stranger's request.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self.code.as_deref(), Some("NoSuchKey" | "NoSuchUpload"))
    }

    pub(super) fn into_error(
        self,
        store: &str,
        operation: &'static str,
        key: &str,
    ) -> StorageError {
        if self.is_missing() {
            return StorageError::missing(store, key);
        }
        let (transient, hint) = self.judge();
        let mut detail = String::new();
        if let Some(status) = self.status {
            detail = format!("{status} ");
        }
        if let Some(code) = &self.code {
            detail = format!("{detail}{code}: ");
        }
        detail.push_str(&self.detail);
        let mut detail = detail.trim_end_matches([' ', ':']).to_owned();
        if !hint.is_empty() {
            detail = format!("{detail}; hint: {hint}");
        }
        if transient {
            StorageError::transient(store, operation, key, detail)
        } else {
            StorageError::permanent(store, operation, key, detail)
        }
    }

    /// Whether it may work later, and what to do about it.
    fn judge(&self) -> (bool, &'static str) {
        match self.kind {
            Kind::Connection | Kind::Unsent => self.judge_unanswered(),
            Kind::Answered => self.judge_code().unwrap_or_else(|| self.judge_status()),
        }
    }

    fn judge_unanswered(&self) -> (bool, &'static str) {
        let says = |text: &str| self.detail.contains(text);
        if says("credential") {
            let away = says("timed out") || says("timeout") || says("io error");
            return (away, if away { METADATA } else { NO_CREDENTIALS });
        }
        if says("certificate") || says("UnknownIssuer") {
            return (
                false,
                "the server's certificate is not trusted here: install ca-certificates, or name \
                 its authority in SSL_CERT_FILE",
            );
        }
        if says("dns error") || says("failed to lookup") {
            return (
                true,
                "the host's name is not known: is AWS_ENDPOINT_URL right? stores that put the \
                 bucket into the path need ANNEAL_S3_PATH_STYLE=true",
            );
        }
        if says("InvalidContentType") {
            return (
                false,
                "the server does not speak TLS: is AWS_ENDPOINT_URL http, not https?",
            );
        }
        (self.kind == Kind::Connection, "")
    }

    fn judge_code(&self) -> Option<(bool, &'static str)> {
        let judged = match self.code.as_deref()? {
            "NoSuchBucket" => (
                false,
                "there is no such bucket at this endpoint: create it, or check its name, \
                 AWS_REGION and AWS_ENDPOINT_URL",
            ),
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "InvalidToken"
            | "UnauthorizedAccess" => (
                false,
                "the store does not know these credentials: check AWS_ACCESS_KEY_ID, \
                 AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_ENDPOINT_URL",
            ),
            "AccessDenied" | "Forbidden" | "AllAccessDisabled" => (
                false,
                "the credentials are known and may not do this; without s3:ListBucket, S3 says \
                 so of objects that are not there as well",
            ),
            "ExpiredToken"
            | "ExpiredTokenException"
            | "TokenRefreshRequired"
            | "RequestExpired" => (true, "the credentials have expired and are looked up anew"),
            "RequestTimeTooSkewed" => (
                true,
                "this machine's clock is off by more than the store allows: set it; requests are \
                 signed with the store's time from here on",
            ),
            "AuthorizationHeaderMalformed"
            | "PermanentRedirect"
            | "TemporaryRedirect"
            | "IllegalLocationConstraintException" => {
                (false, "the bucket is in another region: set AWS_REGION")
            }
            "BadDigest"
            | "InvalidDigest"
            | "XAmzContentChecksumMismatch"
            | "XAmzContentSHA256Mismatch" => (
                false,
                "the bytes that arrived do not have the checksum that was sent with them",
            ),
            "SlowDown"
            | "InternalError"
            | "ServiceUnavailable"
            | "RequestTimeout"
            | "Throttling"
            | "ThrottlingException"
            | "TooManyRequests"
            | "OperationAborted"
            | "ConditionalRequestConflict"
            | "RequestLimitExceeded" => (true, ""),
            "NotImplemented" => (
                false,
                "the store has no such operation: see agent probe-store",
            ),
            "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage" => {
                (false, "the store is full")
            }
            _ => return None,
        };
        Some(judged)
    }

    fn judge_status(&self) -> (bool, &'static str) {
        match self.status.unwrap_or(0) {
            408 | 409 | 425 | 429 => (true, ""),
            501 => (
                false,
                "the store has no such operation: see agent probe-store",
            ),
            507 => (false, "the store is full"),
            500..=599 => (true, ""),
            // Answered with success, and with a body that is an error or nothing known.
            200..=299 => (true, ""),
            301 | 307 | 308 => (
                false,
                "the bucket is elsewhere: set AWS_REGION, or AWS_ENDPOINT_URL",
            ),
            401 | 403 => (
                false,
                "the credentials are wrong or may not do this: check AWS_ACCESS_KEY_ID, \
                 AWS_SECRET_ACCESS_KEY and the bucket's policy",
            ),
            404 => (false, "is AWS_ENDPOINT_URL the address of an S3 store?"),
            _ => (false, ""),
        }
    }
}

const NO_CREDENTIALS: &str = "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
                              AWS_PROFILE; a container that shall use its machine's role needs a \
                              metadata hop limit of 2";
const METADATA: &str = "whoever hands out credentials does not answer; from inside a container, \
                        the machine's metadata service needs a hop limit of 2";

/// An error and what is behind it, each said once.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}
