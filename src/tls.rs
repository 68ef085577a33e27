//! TLS as this process speaks it to others: the hub, the collector of traces, and a server that the command line asks.

use std::sync::Arc;

/// The system's root certificates and one implementation of the ciphers, whatever else is linked in. Without any root
/// certificate, `https` fails at the first connection and `http` mirrors work.
///
/// # Panics
/// Never: the provider has the ciphers of both versions.
#[must_use]
pub fn tls() -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the ciphers of TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth()
}
