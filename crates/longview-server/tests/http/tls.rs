//! HTTPS with a certificate made for the test.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longview_server::{ServerOptions, Tls};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::support::{ANSWER, QUESTION, Running, ask, engine, options};

/// A certificate for `localhost` and its key, in files and for a client.
struct Made {
    certificate: PathBuf,
    key: PathBuf,
    der: CertificateDer<'static>,
}

fn made(folder: &Path, name: &str) -> Made {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let made = Made {
        certificate: folder.join(format!("{name}.crt")),
        key: folder.join(format!("{name}.key")),
        der: cert.der().clone(),
    };
    std::fs::write(&made.certificate, cert.pem()).unwrap();
    std::fs::write(&made.key, signing_key.serialize_pem()).unwrap();
    made
}

/// A connection by TLS that trusts `root` alone.
fn connect(server: &Running, root: &Made) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(root.der.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(connection, TcpStream::connect(server.address).unwrap())
}

#[test]
fn clients_that_trust_the_certificate_are_answered_by_tls() {
    let (folder, keys) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (ours, other) = (made(keys.path(), "ours"), made(keys.path(), "other"));
    let mut server = Running::start(
        engine(folder.path()),
        ServerOptions {
            tls: Some(Tls::from_files(&ours.certificate, &ours.key).unwrap()),
            ..options(folder.path())
        },
    );
    let body = ask(QUESTION).to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: \
         application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = connect(&server, &ours);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["choices"][0]["message"]["content"], ANSWER);

    // Nobody who trusts another certificate is answered.
    let mut stream = connect(&server, &other);
    assert!(stream.write_all(request.as_bytes()).is_err());
    // Plain HTTP is told what is spoken here.
    let plain = server.get("/health");
    assert_eq!(plain.status, 400);
    assert!(String::from_utf8_lossy(&plain.body).contains("https://"));
    // Whoever connects and says nothing holds neither others nor the end up.
    let silent = TcpStream::connect(server.address).unwrap();
    let mut stream = connect(&server, &ours);
    stream
        .write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("{\"status\":\"ok\"}"), "{answer}");
    let begun = std::time::Instant::now();
    server.stop();
    server.wait().unwrap();
    assert!(begun.elapsed().as_secs() < 5);
    drop(silent);
}

#[test]
fn files_that_cannot_be_used_are_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, other) = (made(folder.path(), "ours"), made(folder.path(), "other"));
    let text = folder.path().join("text");
    std::fs::write(&text, "no certificate\n").unwrap();
    let broken = folder.path().join("broken");
    std::fs::write(
        &broken,
        "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let nonsense = folder.path().join("nonsense");
    std::fs::write(
        &nonsense,
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let nowhere = folder.path().join("nowhere");
    let refused = |certificate: &Path, key: &Path| {
        Tls::from_files(certificate, key).err().unwrap().to_string()
    };
    for (certificate, key, place, what) in [
        (&nowhere, &ours.key, "nowhere", "cannot be read"),
        (&text, &ours.key, "text", "no certificate in this file"),
        (&broken, &ours.key, "broken", "no PEM file"),
        (&nonsense, &ours.key, "nonsense", "cannot be used"),
        (
            &ours.key,
            &ours.key,
            "ours.key",
            "no certificate in this file",
        ),
        (&ours.certificate, &nowhere, "nowhere", "cannot be read"),
        (
            &ours.certificate,
            &ours.certificate,
            "ours.crt",
            "no private key in this file",
        ),
        (
            &ours.certificate,
            &other.key,
            "other.key",
            "not the key of the certificate",
        ),
    ] {
        let message = refused(certificate, key);
        assert!(
            message.contains(place) && message.contains(what),
            "{message}"
        );
    }
}
