//! Trust in one certificate, the one in a file here: whoever shows it and has its key is the server, whatever name it is
//! made out to and whoever signed it. And, where nothing secret is sent, in any.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime, pem};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};

/// A file that holds no certificate.
#[derive(Debug, thiserror::Error)]
#[error("the certificate in `{}` cannot be read: {reason}", path.display())]
pub struct NoCertificate {
    path: PathBuf,
    reason: String,
}

/// A client that trusts the first certificate of a PEM file and no other.
///
/// # Errors
/// When there is none.
pub(super) fn trusting(path: &Path) -> Result<ClientConfig, NoCertificate> {
    let error = |reason: String| NoCertificate { path: path.to_owned(), reason };
    let bytes = fs_err::read(path).map_err(|source| error(io::Error::from(source.kind()).to_string()))?;
    let certificate = CertificateDer::from_pem_slice(&bytes).map_err(|source: pem::Error| error(source.to_string()))?;
    Ok(client(Some(certificate)))
}

/// A client that takes any certificate of whoever has its key, for what may be told to everybody.
pub(super) fn trusting_any() -> ClientConfig {
    client(None)
}

fn client(certificate: Option<CertificateDer<'static>>) -> ClientConfig {
    let provider = Arc::new(ring::default_provider());
    let pinned = Pinned { certificate, algorithms: provider.signature_verification_algorithms };
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the ciphers of TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth()
}

#[derive(Debug)]
struct Pinned {
    /// The one that is trusted; `None`: any.
    certificate: Option<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.certificate.as_ref().is_none_or(|certificate| end_entity == certificate) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
