//! TLS: certificates and keys from files, and the handshake.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, version};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::error::ServerError;

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The first byte of every TLS connection.
const HANDSHAKE: u8 = 22;

/// What is said to a client that speaks plain HTTP, which it understands.
const SPEAK_TLS: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain\r\n\
                         content-length: 60\r\n\r\nThis server speaks TLS: use https:// in place of http:// .\r\n";

/// A certificate and its key, ready to be shown to clients. TLS 1.2 and 1.3 are spoken.
#[derive(Clone, Debug)]
pub struct Tls(Arc<ServerConfig>);

impl Tls {
    /// A chain of certificates, the server's own first, and the key of that one, both PEM files.
    ///
    /// # Errors
    /// [`ServerError::Tls`] for files that cannot be read, that hold no certificate or no key, and for
    /// a key that is not the certificate's.
    pub fn from_files(certificates: &Path, key: &Path) -> Result<Tls, ServerError> {
        let wrong = |path: &Path, what: String| ServerError::Tls {
            file: path.display().to_string(),
            what,
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificates)
            .and_then(Iterator::collect)
            .map_err(|error| wrong(certificates, in_words(error, "certificate")))?;
        if chain.is_empty() {
            return Err(wrong(
                certificates,
                in_words(pem::Error::NoItemsFound, "certificate"),
            ));
        }
        let private = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| wrong(key, in_words(error, "private key")))?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .and_then(|builder| {
                builder
                    .with_no_client_auth()
                    .with_single_cert(chain, private)
            });
        let mut config = config.map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => wrong(
                key,
                format!(
                    "this is not the key of the certificate in {}",
                    certificates.display()
                ),
            ),
            rustls::Error::InvalidCertificate(_) => wrong(
                certificates,
                format!("this certificate cannot be used: {error}"),
            ),
            error => wrong(key, format!("this key cannot be used: {error}")),
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls(Arc::new(config)))
    }

    /// Shakes hands with whoever has connected. A client that speaks plain HTTP is told so.
    pub(crate) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let handshake = async {
            let mut first = [0];
            if stream.peek(&mut first).await? == 1 && first[0] != HANDSHAKE {
                tell_plainly(stream).await?;
                return Err(io::ErrorKind::InvalidData.into());
            }
            TlsAcceptor::from(Arc::clone(&self.0)).accept(stream).await
        };
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(done) => done,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

async fn tell_plainly(mut stream: TcpStream) -> io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    // What was sent is taken in first: a connection closed before that would be reset, and the answer
    // lost.
    let mut request = [0; 4096];
    let _ = stream.read(&mut request).await?;
    stream.write_all(SPEAK_TLS.as_bytes()).await?;
    stream.shutdown().await
}

fn in_words(error: pem::Error, wanted: &str) -> String {
    match error {
        pem::Error::Io(error) => format!("the file cannot be read: {error}"),
        pem::Error::NoItemsFound => {
            format!("there is no {wanted} in this file; give one in PEM form (-----BEGIN …-----)")
        }
        error => format!("this is no PEM file with a {wanted}: {error:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_to_plain_clients_is_as_long_as_it_says() {
        let (head, body) = SPEAK_TLS.split_once("\r\n\r\n").unwrap();
        let length = head.rsplit(' ').next().unwrap();
        assert_eq!(length.parse::<usize>().unwrap(), body.len());
    }
}
