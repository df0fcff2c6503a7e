//! How each HTTP client of the agent begins. reqwest is built without cryptography of its own, so
//! that the program has one, ring, which the S3 client and the server take too. Called by all that
//! ask over HTTP.

use reqwest::{Client, ClientBuilder};
use rustls::crypto::ring;

/// A client whose TLS is ring's; without this, reqwest panics for want of any.
pub fn builder() -> ClientBuilder {
    // One is installed for the process: all but the first find it there.
    ring::default_provider().install_default().ok();
    #[expect(clippy::disallowed_methods, reason = "TLS has its provider")]
    Client::builder()
}
