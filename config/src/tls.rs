//! The certificate and the key of HTTPS, from files that may be read again while serving.

use std::path::PathBuf;

use crate::error::{ConfigError, Setting};
use crate::layers::Layers;
use crate::raw;
use crate::units::Secret;

/// Files in PEM, and what they said at the start.
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    /// What they said.
    pub pem: Pem,
    certificate: File,
    key: File,
}

/// The text of both files, not yet looked into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pem {
    /// The chain, the server's own certificate first.
    pub certificate: String,
    /// Its private key.
    pub key: Secret,
}

/// Where it is, and which setting says so.
#[derive(Clone, Debug, PartialEq)]
struct File(PathBuf, Setting);

impl Tls {
    pub(crate) fn resolve(layers: &Layers, raw: &raw::Tls) -> Result<Option<Self>, ConfigError> {
        let file = |key: &str, path: &PathBuf| File(path.clone(), layers.setting(key));
        let incomplete = |key: &str, needs| {
            let setting = Box::new(layers.setting(key));
            Err(ConfigError::Incomplete { setting, needs })
        };
        let (certificate, key) = match (&raw.certificate, &raw.key) {
            (None, None) => return Ok(None),
            (Some(_), None) => return incomplete("tls.certificate", "tls.key"),
            (None, Some(_)) => return incomplete("tls.key", "tls.certificate"),
            (Some(certificate), Some(key)) => (file("tls.certificate", certificate), file("tls.key", key)),
        };
        Ok(Some(Self { pem: Pem::read(&certificate, &key)?, certificate, key }))
    }

    /// What the files say now.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn read_again(&self) -> Result<Pem, ConfigError> {
        Pem::read(&self.certificate, &self.key)
    }
}

impl Pem {
    fn read(certificate: &File, key: &File) -> Result<Self, ConfigError> {
        Ok(Self { certificate: certificate.read()?, key: Secret::new(key.read()?) })
    }
}

impl File {
    fn read(&self) -> Result<String, ConfigError> {
        let Self(path, setting) = self;
        std::fs::read_to_string(path)
            .map_err(|error| setting.wrong(&format!("cannot read the file: {error}")))
    }
}
