//! The ways to the server: TLS, a socket of this user.

use std::os::unix::fs::PermissionsExt as _;

use reqwest::Certificate;

use super::*;
use crate::http::pinned;

fn hello() -> Router {
    Router::new().route("/livez", get(async || "ok"))
}

fn anywhere() -> Listen {
    Listen::Tcp("127.0.0.1:0".parse().unwrap())
}

async fn ask(client: reqwest::ClientBuilder, url: &str) -> Result<String, reqwest::Error> {
    let client = client.no_proxy().timeout(PATIENCE).build()?;
    client
        .get(format!("{url}/livez"))
        .send()
        .await?
        .text()
        .await
}

#[tokio::test]
async fn a_client_believes_the_fingerprint_and_nothing_else() {
    let tls = Tls::self_signed().unwrap();
    let server = Server::serve(anywhere(), Some(tls.clone()), hello(), "tls").unwrap();
    let url = server.url();
    assert!(url.starts_with("https://"));
    let knows = |fingerprint: &str| {
        let config = pinned(fingerprint).unwrap();
        https::builder().tls_backend_preconfigured(config)
    };
    assert_eq!(ask(knows(tls.fingerprint()), &url).await.unwrap(), "ok");
    // As people write them, too.
    let spelled = tls.fingerprint().to_ascii_uppercase();
    assert_eq!(ask(knows(&spelled), &url).await.unwrap(), "ok");
    let other = Tls::self_signed().unwrap();
    let error = ask(knows(other.fingerprint()), &url).await.unwrap_err();
    assert!(
        format!("{error:?}").contains(tls.fingerprint()),
        "{error:?}"
    );
    let error = ask(https::builder(), &url).await.unwrap_err();
    assert!(format!("{error:?}").contains("UnknownIssuer"), "{error:?}");
    let plain = url.replace("https", "http");
    ask(https::builder(), &plain).await.unwrap_err();
    for wrong in ["", "ab", &"g".repeat(64)] {
        assert!(pinned(wrong).is_err(), "{wrong}");
    }
    server.close(PATIENCE).await;
}

#[tokio::test]
async fn a_client_of_ours_believes_the_roots_of_trust() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let root = made.cert.pem();
    std::fs::write(path("cert"), &root).unwrap();
    std::fs::write(path("key"), made.signing_key.serialize_pem()).unwrap();
    let tls = Tls::from_files(&path("cert"), &path("key")).unwrap();
    let server = Server::serve(anywhere(), Some(tls), hello(), "tls").unwrap();
    let root = Certificate::from_pem(root.as_bytes()).unwrap();
    let client = https::builder().tls_certs_only([root]);
    assert_eq!(ask(client, &server.url()).await.unwrap(), "ok");
    server.close(PATIENCE).await;
}

#[tokio::test]
async fn certificates_come_from_files_and_faults_name_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = rcgen::KeyPair::generate().unwrap();
    for (name, text) in [
        ("cert", made.cert.pem()),
        ("key", made.signing_key.serialize_pem()),
        ("other", other.serialize_pem()),
        ("empty", String::new()),
    ] {
        std::fs::write(path(name), text).unwrap();
    }
    let tls = Tls::from_files(&path("cert"), &path("key")).unwrap();
    let server = Server::serve(anywhere(), Some(tls.clone()), hello(), "tls").unwrap();
    let config = pinned(tls.fingerprint()).unwrap();
    let client = https::builder().tls_backend_preconfigured(config);
    assert_eq!(ask(client, &server.url()).await.unwrap(), "ok");
    for (certificate, key, part) in [
        ("none", "key", "none"),
        ("empty", "key", "empty"),
        ("cert", "empty", "empty"),
        ("cert", "other", "certificate and key"),
    ] {
        let error = Tls::from_files(&path(certificate), &path(key)).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_socket_is_for_its_user_and_an_old_one_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    // What a killed agent leaves.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listen = Listen::Unix(path.clone());
    let server = Server::serve(listen.clone(), None, hello(), "unix").unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let client = || https::builder().unix_socket(path.clone());
    assert_eq!(ask(client(), "http://localhost").await.unwrap(), "ok");
    // One that somebody listens at is left alone.
    assert!(Server::serve(listen, None, hello(), "unix").is_err());
    assert_eq!(ask(client(), "http://localhost").await.unwrap(), "ok");
    server.close(PATIENCE).await;
    assert!(!path.exists());
    std::fs::write(&path, "a file").unwrap();
    assert!(Server::serve(Listen::Unix(path.clone()), None, hello(), "unix").is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"a file");
}
