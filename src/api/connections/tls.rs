//! TLS: the certificate, which is taken anew when its files change; when it expires; and the handshake.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, RootCertStore, ServerConfig};
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::clock::rfc3339;
use crate::telemetry::{self, with_causes};

/// What is spoken inside, best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// How long before its end a certificate is told of. What renews them by itself does so earlier.
const NOTICE: time::Duration = time::Duration::days(14);

/// Where the certificate and its key are, both in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate, then those that lead to one that callers trust.
    pub certificate: PathBuf,
    /// Its private key: PKCS #8, PKCS #1 or SEC1.
    pub key: PathBuf,
}

/// Why a certificate cannot be served. What is in the files is not repeated.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("`{}` cannot be read, which `server.{setting}` names", path.display())]
    Unreadable {
        /// The setting that names it, in `[server]`.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("`{}` holds no {expected} in PEM, which `server.{setting}` needs", path.display())]
    Foreign {
        /// The setting that names it, in `[server]`.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
    },
    /// The key is there, and takes a password.
    #[error(
        "the private key in `{}` is encrypted, and `server.tls_key` needs one that is not: write it with \
         `openssl pkey -in '{}' -out NEW_FILE`, for the server's user alone, and name that file",
        path.display(),
        path.display()
    )]
    Encrypted {
        /// The file of the key.
        path: PathBuf,
    },
    /// The two do not make a server.
    #[error("the certificate in `{}` and the key in `{}` cannot be served", certificate.display(), key.display())]
    Refused {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// What is wrong with them.
        source: rustls::Error,
    },
}

/// Why callers refuse the certificate that is served, or soon will.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ending {
    /// It is over.
    #[error("the certificate in `{}` has expired, on {}, and callers refuse it", certificate.display(), rfc3339(*at))]
    Past {
        /// The file of the certificate.
        certificate: PathBuf,
        /// When it ended.
        at: OffsetDateTime,
    },
    /// It is near.
    #[error("the certificate in `{}` expires soon, on {}", certificate.display(), rfc3339(*at))]
    Near {
        /// The file of the certificate.
        certificate: PathBuf,
        /// When it ends.
        at: OffsetDateTime,
    },
}

/// The certificate that the server shows, until its files change.
pub struct Tls {
    files: TlsFiles,
    current: RwLock<Current>,
}

struct Current {
    acceptor: TlsAcceptor,
    /// When the certificate ends; `None` when it cannot be learned.
    expires: Option<OffsetDateTime>,
    /// What the log says of its end.
    told: Option<Ending>,
    /// What the files held when they were last looked at, so that a bad change is told of once; `None` when they could
    /// not be read.
    seen: Option<Contents>,
}

/// What the two files hold.
#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Tls {
    /// Reads the certificate and its key.
    ///
    /// # Errors
    /// When they cannot be read or do not belong together.
    pub fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let contents = files.read()?;
        let (acceptor, expires) = files.acceptor(&contents)?;
        let current = RwLock::new(Current { acceptor, expires, told: None, seen: Some(contents) });
        Ok(Self { files, current })
    }

    /// Looks whether the files have changed, and shows the new certificate from then on. A bad one changes nothing, and
    /// connections keep what they began with. Tells of a certificate that ends.
    pub fn refresh(&self) {
        self.take_anew();
        let ending = self.ending(OffsetDateTime::now_utc());
        let mut current = self.current.write();
        if let Some(expires) = current.expires {
            metrics::gauge!(telemetry::TLS_CERTIFICATE_EXPIRES).set(expires.unix_timestamp() as f64);
        }
        if current.told != ending {
            if let Some(ending) = &ending {
                tracing::warn!("{ending}: renew it, and the server takes the new one within seconds");
            }
            current.told = ending;
        }
    }

    /// Why callers refuse the certificate at this time, or soon will; `None` when they do not.
    #[must_use]
    pub fn ending(&self, now: OffsetDateTime) -> Option<Ending> {
        let (at, certificate) = (self.expires()?, self.files.certificate.clone());
        if at <= now {
            Some(Ending::Past { certificate, at })
        } else if at - now <= NOTICE {
            Some(Ending::Near { certificate, at })
        } else {
            None
        }
    }

    /// When the certificate ends; `None` when it cannot be learned.
    fn expires(&self) -> Option<OffsetDateTime> {
        self.current.read().expires
    }

    fn take_anew(&self) {
        let read = self.files.read();
        let mut current = self.current.write();
        let (contents, made) = match read {
            Ok(contents) if current.seen.as_ref() == Some(&contents) => return,
            Ok(contents) => {
                let made = self.files.acceptor(&contents);
                (Some(contents), made)
            }
            // While the files are being replaced, one may be missing for a moment.
            Err(_) if current.seen.is_none() => return,
            Err(error) => (None, Err(error)),
        };
        current.seen = contents;
        match made {
            Ok((acceptor, expires)) => {
                (current.acceptor, current.expires) = (acceptor, expires);
                tracing::info!(certificate = %self.files.certificate.display(), "a new certificate is served");
            }
            Err(error) => tracing::error!(
                "the certificate was not taken anew, and the one before is served: {}",
                with_causes(&error)
            ),
        }
    }

    /// Shakes hands with a caller, who has so much time; `None` when it comes to nothing.
    pub(super) async fn shake_hands(&self, stream: TcpStream, time: Duration) -> Option<TlsStream<TcpStream>> {
        let acceptor = self.current.read().acceptor.clone();
        match tokio::time::timeout(time, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake failed");
                None
            }
            Err(_) => {
                tracing::debug!("a TLS handshake took longer than `server.header_timeout`");
                None
            }
        }
    }
}

impl TlsFiles {
    fn read(&self) -> Result<Contents, TlsError> {
        let read = |setting, path: &Path| {
            fs_err::read(path).map_err(|error| TlsError::Unreadable {
                setting,
                path: path.to_owned(),
                source: error.kind().into(),
            })
        };
        Ok(Contents { certificate: read("tls_certificate", &self.certificate)?, key: read("tls_key", &self.key)? })
    }

    /// What shows the certificate, and when that ends.
    fn acceptor(&self, contents: &Contents) -> Result<(TlsAcceptor, Option<OffsetDateTime>), TlsError> {
        let foreign = |setting, path: &Path, expected| TlsError::Foreign { setting, path: path.to_owned(), expected };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&contents.certificate)
            .collect::<Result<_, pem::Error>>()
            .ok()
            .filter(|chain: &Vec<_>| !chain.is_empty())
            .ok_or_else(|| foreign("tls_certificate", &self.certificate, "certificate"))?;
        let expires = chain.first().and_then(end_of);
        let key = PrivateKeyDer::from_pem_slice(&contents.key).map_err(|_| {
            if is_encrypted(&contents.key) {
                TlsError::Encrypted { path: self.key.clone() }
            } else {
                foreign("tls_key", &self.key, "private key")
            }
        })?;
        let refused =
            |source| TlsError::Refused { certificate: self.certificate.clone(), key: self.key.clone(), source };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(refused)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(refused)?;
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok((TlsAcceptor::from(Arc::new(config)), expires))
    }
}

/// When a certificate ends. rustls tells that only in its error for an expired one, so it is checked at the end of time.
fn end_of(certificate: &CertificateDer<'_>) -> Option<OffsetDateTime> {
    let certificate = ParsedCertificate::try_from(certificate).ok()?;
    let end_of_time = UnixTime::since_unix_epoch(Duration::MAX);
    let checked =
        verify_server_cert_signed_by_trust_anchor(&certificate, &RootCertStore::empty(), &[], end_of_time, &[]);
    match checked {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            OffsetDateTime::from_unix_timestamp(i64::try_from(not_after.as_secs()).ok()?).ok()
        }
        _ => None,
    }
}

/// Whether a key in PEM takes a password: PKCS #8 says so in its first line, and older forms in their second.
fn is_encrypted(key: &[u8]) -> bool {
    let text = String::from_utf8_lossy(key);
    ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"].iter().any(|mark| text.contains(mark))
}
