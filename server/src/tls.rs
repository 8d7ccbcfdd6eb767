//! TLS: handshakes under the certificate of the moment, and a client that knows its own server.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context as _;
use frugal_config::tls::Pem;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream as Client;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{self, CryptoProvider};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// How connections are made private. Clones share the certificate.
#[derive(Clone)]
pub(crate) struct Tls(Arc<RwLock<Arc<ServerConfig>>>);

impl Tls {
    /// With this certificate.
    ///
    /// # Errors
    /// If there is none, or it and the key do not belong together.
    pub(crate) fn new(pem: &Pem) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(RwLock::new(server(pem)?))))
    }

    /// With this one from the next connection on.
    ///
    /// # Errors
    /// As for the first; then nothing changes.
    pub(crate) fn replace(&self, pem: &Pem) -> anyhow::Result<()> {
        let new = server(pem)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// A client's handshake, which takes as long as the client likes.
    pub(crate) async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let now = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        TlsAcceptor::from(now).accept(stream).await
    }
}

/// The provider that the rest of the program has, named so that no other is ever chosen.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(crypto::ring::default_provider())
}

/// The certificates in `tls.certificate`, the server's own first.
fn chain(pem: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = chain.context("tls.certificate is not PEM")?;
    anyhow::ensure!(!chain.is_empty(), "tls.certificate: the file has no certificate");
    Ok(chain)
}

fn server(pem: &Pem) -> anyhow::Result<Arc<ServerConfig>> {
    let key = PrivateKeyDer::from_pem_slice(pem.key.expose().as_bytes());
    let key = key.context("tls.key: the file has no private key in PEM")?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .context("TLS cannot be had")?
        .with_no_client_auth()
        .with_single_cert(chain(&pem.certificate)?, key)
        .context("tls.certificate and tls.key cannot be used together")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Who a probe takes for its server.
pub(crate) enum Trust {
    /// Whoever answers.
    Anyone,
    /// Whoever has the certificate in this PEM text.
    Own(String),
}

/// Connects to the server that is trusted.
///
/// # Errors
/// If another one answers.
pub(crate) async fn connect(stream: TcpStream, trust: &Trust) -> anyhow::Result<Client<TcpStream>> {
    let address = stream.peer_addr()?;
    let own = match trust {
        Trust::Anyone => None,
        Trust::Own(pem) => Some(chain(pem)?.swap_remove(0)),
    };
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Own(own, provider())))
        .with_no_client_auth();
    let name = ServerName::IpAddress(address.ip().into());
    Ok(TlsConnector::from(Arc::new(config)).connect(name, stream).await?)
}

/// A client that trusts the authorities in this file, or those that browsers trust.
///
/// # Errors
/// If the file cannot be used.
pub(crate) fn client(authorities: Option<&Path>) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = authorities {
        let wrong = || format!("cannot take authorities from {}", path.display());
        roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).with_context(wrong)? {
            roots.add(certificate.with_context(wrong)?).with_context(wrong)?;
        }
        anyhow::ensure!(!roots.is_empty(), "{}: the file has no certificate in PEM", wrong());
    }
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth())))
}

/// Why a client's handshake failed, for whoever asked for it.
pub(crate) fn reason(error: &std::io::Error) -> String {
    let of_tls = error.get_ref().and_then(|error| error.downcast_ref());
    match of_tls {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "no trusted authority vouches for its certificate; name one with --ca-file".to_owned()
        }
        Some(Error::InvalidCertificate(CertificateError::Other(other)))
            if other.to_string().contains("CaUsedAsEndEntity") =>
        {
            "its certificate is an authority's own, which no server may show; make one with \
             `-addext basicConstraints=critical,CA:FALSE`"
                .to_owned()
        }
        Some(Error::InvalidMessage(_)) => "it does not speak TLS".to_owned(),
        _ => error.to_string(),
    }
}

/// Trusts one certificate, whatever it says, as who asks has the server's own files; or any.
#[derive(Debug)]
struct Own(Option<CertificateDer<'static>>, Arc<CryptoProvider>);

impl ServerCertVerifier for Own {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.0.as_ref().is_none_or(|own| own == shown) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::General("the server has another certificate than tls.certificate".to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.1.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.1.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.1.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use frugal_config::units::Secret;
    use tokio::net::TcpListener;

    use super::*;

    fn made() -> Pem {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        Pem { certificate: made.cert.pem(), key: Secret::new(made.signing_key.serialize_pem()) }
    }

    #[tokio::test]
    async fn a_probe_knows_its_server_or_takes_any() {
        let (own, other) = (made(), made());
        let tls = Tls::new(&own).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        for (trust, taken) in [
            (Trust::Own(own.certificate), true),
            (Trust::Own(other.certificate), false),
            (Trust::Own("no certificate".to_owned()), false),
            (Trust::Anyone, true),
        ] {
            let client = TcpStream::connect(address).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let (_, connected) = tokio::join!(tls.accept(stream), connect(client, &trust));
            assert_eq!(connected.is_ok(), taken);
        }
    }
}
