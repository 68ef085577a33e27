//! TLS: what is spoken, who is refused, and certificates that change while the server runs.

use std::path::Path;
use std::sync::Arc;

use granary::telemetry::with_causes;
use rcgen::{BasicConstraints, CertificateParams, CertifiedKey, IsCa, KeyPair};
use reqwest::{Certificate, Client, Version};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::health::{health, said};
use crate::helpers::{Process, TestApp, client, folder_with, until, with_tiny};

/// A certificate for `localhost` that trusts nobody but itself.
fn certificate() -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate")
}

/// The same, which ends then.
pub fn certificate_until(end: OffsetDateTime) -> CertifiedKey<KeyPair> {
    certificate_with(|params| params.not_after = end)
}

fn certificate_with(change: impl FnOnce(&mut CertificateParams)) -> CertifiedKey<KeyPair> {
    let mut params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
    change(&mut params);
    let signing_key = KeyPair::generate().expect("a key");
    CertifiedKey { cert: params.self_signed(&signing_key).expect("a certificate"), signing_key }
}

/// Writes it and its key to a folder, as `tls.crt` and `tls.key`.
pub fn write(folder: &Path, made: &CertifiedKey<KeyPair>) {
    fs_err::write(folder.join("tls.key"), made.signing_key.serialize_pem()).expect("a key");
    fs_err::write(folder.join("tls.crt"), made.cert.pem()).expect("a certificate");
}

/// What a server with the certificate of a folder reads.
fn toml(folder: &Path, others: &str) -> String {
    let folder = folder.display();
    format!(
        "[server]\ntls_certificate = '{folder}/tls.crt'\ntls_key = '{folder}/tls.key'\n{others}\n{}",
        with_tiny(&[])
    )
}

async fn serve(others: &str) -> (TempDir, CertifiedKey<KeyPair>, TestApp) {
    let (folder, made) = (TempDir::new().expect("a folder"), certificate());
    write(folder.path(), &made);
    let app = TestApp::start_with(&toml(folder.path(), others)).await;
    (folder, made, app)
}

/// A server of its own process, and its port.
fn serve_process(folder: &Path) -> (Process, String) {
    let mut process = Process::start_server(folder, &[]);
    let log = process.wait_for("serving on https://");
    let port = log.split("serving on https://127.0.0.1:").nth(1).and_then(|rest| rest.split_whitespace().next());
    (process, port.expect("a port").to_owned())
}

/// A client that trusts this certificate and no other.
fn trusting(made: &CertifiedKey<KeyPair>) -> Client {
    // It names the crate of the ciphers.
    drop(client());
    let certificate = Certificate::from_pem(made.cert.pem().as_bytes()).expect("a certificate");
    Client::builder().no_proxy().tls_certs_only([certificate]).build().expect("a client")
}

/// The protocol that the server chooses of those that are offered.
async fn negotiated(app: &TestApp, made: &CertifiedKey<KeyPair>, offered: &[&str]) -> Option<Vec<u8>> {
    drop(client());
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a certificate");
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(app.url().trim_start_matches("http://")).await.expect("a connection");
    let name = "localhost".try_into().expect("a name");
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("a handshake");
    stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec)
}

fn url(app: &TestApp, path: &str) -> String {
    app.url().replace("http://127.0.0.1", "https://localhost") + path
}

#[tokio::test]
async fn requests_are_answered_inside_tls_in_both_versions_of_http() {
    let (_folder, made, app) = serve("").await;
    let body = json!({"inputs": "hello"});
    let answer = trusting(&made).post(url(&app, "/embed")).json(&body).send().await.expect("an answer");
    assert_eq!((answer.status().as_u16(), answer.version()), (200, Version::HTTP_11));
    for (offered, chosen) in [(&["http/1.1", "h2"][..], "h2"), (&["http/1.1"], "http/1.1")] {
        assert_eq!(negotiated(&app, &made, offered).await.as_deref(), Some(chosen.as_bytes()), "{offered:?}");
    }
    assert!(trusting(&certificate()).get(url(&app, "/health/live")).send().await.is_err());
    app.stop().await;
}

#[tokio::test]
async fn who_does_not_shake_hands_is_not_answered() {
    let (_folder, made, app) = serve("header_timeout = \"1s\"").await;
    let open = async || TcpStream::connect(app.url().trim_start_matches("http://")).await.expect("a connection");
    let mut plain = open().await;
    plain.write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("sent");
    let mut read = Vec::new();
    // What comes is an alert of TLS, or the end.
    let _ = plain.read_to_end(&mut read).await;
    assert!(!String::from_utf8_lossy(&read).contains("HTTP"), "{read:?}");
    let mut silent = open().await;
    read.clear();
    let _ = silent.read_to_end(&mut read).await;
    assert!(read.is_empty(), "{read:?}");
    assert!(trusting(&made).get(url(&app, "/health/live")).send().await.is_ok());
    app.stop().await;
}

#[tokio::test]
async fn a_renewed_certificate_is_served_and_a_bad_one_is_not() {
    let (files, old) = (TempDir::new().expect("a folder"), certificate());
    write(files.path(), &old);
    let folder = folder_with(&toml(files.path(), ""));
    let (mut process, port) = serve_process(folder.path());
    let url = format!("https://localhost:{port}/health/live");
    let kept = trusting(&old);
    assert!(kept.get(&url).send().await.expect("an answer").status().is_success());

    fs_err::write(files.path().join("tls.crt"), "no certificate").expect("written");
    let log = process.wait_for("the certificate was not taken anew, and the one before is served");
    assert!(log.contains("tls.crt` holds no certificate in PEM, which `server.tls_certificate` needs"), "{log}");
    assert!(trusting(&old).get(&url).send().await.is_ok());

    let new = certificate();
    write(files.path(), &new);
    process.wait_for("a new certificate is served");
    until("the new certificate is served", async || trusting(&new).get(&url).send().await.is_ok()).await;
    assert!(trusting(&old).get(&url).send().await.is_err());
    // Who is connected stays so.
    assert!(kept.get(&url).send().await.is_ok());
    process.stop();
}

#[tokio::test]
async fn the_log_and_a_metric_tell_of_a_certificate_that_ends() {
    let in_days = |n_days| OffsetDateTime::now_utc() + time::Duration::days(n_days);
    let (files, near) = (TempDir::new().expect("a folder"), certificate_until(in_days(13)));
    write(files.path(), &near);
    let folder = folder_with(&toml(files.path(), ""));
    let (mut process, port) = serve_process(folder.path());
    let log = process.wait_for("tls.crt` expires soon, on 20");
    assert!(log.contains(": renew it, and the server takes the new one within seconds"), "{log}");

    write(files.path(), &certificate_until(in_days(-1)));
    process.wait_for("tls.crt` has expired, on 20");

    let (end, before) = (in_days(15), process.log());
    let far = certificate_until(end);
    write(files.path(), &far);
    let (url, metric) = (
        format!("https://localhost:{port}/metrics"),
        format!("granary_tls_certificate_expires_timestamp_seconds {}\n", end.unix_timestamp()),
    );
    let is_shown = async || {
        // Until the new one is served, there is no connection.
        let Ok(answer) = trusting(&far).get(&url).send().await else { return false };
        answer.text().await.expect("metrics").contains(&metric)
    };
    until(&format!("there is {metric}"), is_shown).await;
    let log = process.stop();
    for told in ["expires soon", "has expired"] {
        assert_eq!((before.matches(told).count(), log.matches(told).count()), (1, 1), "{told}:\n{log}");
    }
}

#[test]
fn the_health_check_sends_a_key_to_the_certificate_of_the_configuration_and_no_other() {
    let (files, made) = (TempDir::new().expect("a folder"), certificate());
    write(files.path(), &made);
    let folder = folder_with(&toml(files.path(), ""));
    let (mut process, port) = serve_process(folder.path());
    let port = [("GRANARY_SERVER__PORT", port.as_str())];
    fs_err::write(files.path().join("ops.key"), "0123456789abcdef").expect("written");
    let key = files.path().join("ops.key").display().to_string();
    let with_key = ["--api-key-file", key.as_str()];
    // It is made out to `localhost`, and asked for at 127.0.0.1.
    for arguments in [&[][..], &with_key] {
        let own = health(folder.path(), arguments, &port);
        assert_eq!(own.status.code(), Some(0), "{}", said(&own));
    }

    let (others, other) = (TempDir::new().expect("a folder"), certificate());
    write(others.path(), &other);
    let elsewhere = folder_with(&toml(others.path(), ""));
    let foreign = health(elsewhere.path(), &with_key, &port);
    assert_eq!(foreign.status.code(), Some(1), "{}", said(&foreign));
    for part in ["shows another certificate than the one in `", "invalid peer certificate"] {
        assert!(said(&foreign).contains(part), "{}", said(&foreign));
    }
    let by_name = health(folder.path(), &["--url", &format!("https://localhost:{}", port[0].1)], &[]);
    assert_eq!(by_name.status.code(), Some(1), "the system trusts nobody who signed it: {}", said(&by_name));
    assert!(said(&by_name).contains("shows a certificate that this machine does not trust"), "{}", said(&by_name));

    // Half renewed: the server goes on with the one before, and is ready.
    fs_err::write(files.path().join("tls.crt"), other.cert.pem()).expect("written");
    process.wait_for("the certificate was not taken anew, and the one before is served");
    let half = health(folder.path(), &[], &port);
    assert_eq!(half.status.code(), Some(0), "{}", said(&half));
    fs_err::remove_file(files.path().join("tls.crt")).expect("removed");
    let without = health(folder.path(), &with_key, &port);
    assert!(said(&without).contains("tls.crt` cannot be read"), "{}", said(&without));
    process.stop();
}

#[test]
fn a_certificate_that_signed_itself_is_trusted_where_it_is_named_and_no_authoritys() {
    for (kind, status, says) in [
        (IsCa::ExplicitNoCa, 0, "ready: the active model"),
        // As `openssl req -x509` makes them.
        (IsCa::Ca(BasicConstraints::Unconstrained), 1, "=CA:FALSE -addext subjectAltName=DNS:HOST`, and name"),
    ] {
        let (files, made) = (TempDir::new().expect("a folder"), certificate_with(|params| params.is_ca = kind));
        write(files.path(), &made);
        let folder = folder_with(&toml(files.path(), ""));
        let (process, port) = serve_process(folder.path());
        let named = files.path().join("tls.crt").display().to_string();
        let url = format!("https://localhost:{port}");
        let asked = health(folder.path(), &["--url", &url], &[("SSL_CERT_FILE", named.as_str())]);
        assert_eq!(asked.status.code(), Some(status), "{}", said(&asked));
        assert!(said(&asked).contains(says), "{}", said(&asked));
        if status == 0 {
            let by_address = format!("https://127.0.0.1:{port}");
            let asked = health(folder.path(), &["--url", &by_address], &[("SSL_CERT_FILE", named.as_str())]);
            assert_eq!(asked.status.code(), Some(1), "it is for `localhost`");
            assert!(said(&asked).contains("shows a certificate for another name"), "{}", said(&asked));
        }
        process.stop();
    }
}

#[tokio::test]
async fn a_certificate_that_cannot_be_served_refuses_the_start() {
    let folder = TempDir::new().expect("a folder");
    let refused = async || {
        let error = TestApp::try_start_with(&toml(folder.path(), "")).await.err().expect("refused");
        with_causes(&error)
    };
    let missing = refused().await;
    assert!(missing.contains("tls.crt` cannot be read, which `server.tls_certificate` names"), "{missing}");
    let (one, other) = (certificate(), certificate());
    write(folder.path(), &one);
    fs_err::write(folder.path().join("tls.key"), other.signing_key.serialize_pem()).expect("a key");
    let foreign = refused().await;
    assert!(foreign.contains("the certificate in `") && foreign.contains("cannot be served"), "{foreign}");
    fs_err::write(folder.path().join("tls.key"), one.cert.pem()).expect("written");
    let no_key = refused().await;
    assert!(no_key.contains("tls.key` holds no private key in PEM, which `server.tls_key` needs"), "{no_key}");
    let head_of_rsa = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n";
    for (label, head) in [("ENCRYPTED PRIVATE KEY", ""), ("RSA PRIVATE KEY", head_of_rsa)] {
        let key = format!("-----BEGIN {label}-----\n{head}MIIBAAAA\n-----END {label}-----\n");
        fs_err::write(folder.path().join("tls.key"), key).expect("written");
        let encrypted = refused().await;
        assert!(encrypted.contains("tls.key` is encrypted, and `server.tls_key` needs one that is not"), "{encrypted}");
        assert!(encrypted.contains("`openssl pkey -in '") && encrypted.contains("tls.key' -out "), "{encrypted}");
    }
}
