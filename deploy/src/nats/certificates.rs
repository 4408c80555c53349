//! The certificates of one fleet: an authority of its own, the server's, and one for each identity. All are ECDSA P-256.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, anyhow};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::files;

/// The authority's certificate.
pub const CA_CERT: &str = "ca.pem";
/// The authority's key: whoever holds it can make identities that the server lets knock.
pub const CA_KEY: &str = "ca.key";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long certificates hold. They end no later than their authority.
const VALID: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The authority's own certificate, as PEM.
    pub cert: String,
}

/// A certificate and its key, both as PEM.
pub struct Signed {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

impl Authority {
    /// Reads the authority in `folder`, or makes one there; true if it was made.
    pub fn open(folder: &Path) -> Result<(Self, bool)> {
        let (cert_path, key_path) = (folder.join(CA_CERT), folder.join(CA_KEY));
        let (cert, key) = (files::read_if_there(&cert_path)?, files::read_if_there(&key_path)?);
        match (cert, key) {
            (Some(cert), Some(key)) => {
                let key = KeyPair::from_pem(&key).with_context(|| key_path.display().to_string())?;
                Ok((Self { issuer: Issuer::new(authority(), key), cert }, false))
            }
            (None, None) => {
                let key = KeyPair::generate()?;
                let cert = authority().self_signed(&key)?.pem();
                files::write(&key_path, &key.serialize_pem())?;
                files::write(&cert_path, &cert)?;
                Ok((Self { issuer: Issuer::new(authority(), key), cert }, true))
            }
            (found, _) => {
                let (there, missing) = if found.is_some() { (cert_path, key_path) } else { (key_path, cert_path) };
                Err(anyhow!(
                    "{} is missing, and {} is there: bring it back, or begin anew in an empty folder",
                    missing.display(),
                    there.display()
                ))
            }
        }
    }

    /// A certificate for a server that is reached as `hosts` (names or addresses), with the key given or a new one.
    pub fn server(&self, hosts: &[String], key: Option<&str>) -> Result<Signed> {
        self.sign("folgore nats", hosts, ExtendedKeyUsagePurpose::ServerAuth, key)
    }

    /// A certificate for the identity `name`.
    pub fn client(&self, name: &str) -> Result<Signed> {
        self.sign(name, &[], ExtendedKeyUsagePurpose::ClientAuth, None)
    }

    fn sign(&self, name: &str, hosts: &[String], usage: ExtendedKeyUsagePurpose, key: Option<&str>) -> Result<Signed> {
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        valid(&mut params);
        let key = key.map_or_else(KeyPair::generate, KeyPair::from_pem)?;
        let cert = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Signed { cert, key: key.serialize_pem() })
    }
}

/// What the authority says of itself; the same whenever it signs, so that only its key has to be kept.
fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Folgore authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params);
    params
}

/// From a day ago, so that clocks may differ.
fn valid(params: &mut CertificateParams) {
    let now = SystemTime::now();
    params.not_before = (now - DAY).into();
    params.not_after = (now + VALID).into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let (first, made) = Authority::open(folder.path()).unwrap();
        assert!(made);
        let (again, made) = Authority::open(folder.path()).unwrap();
        assert!(!made && first.cert == again.cert);
        std::fs::remove_file(folder.path().join(CA_KEY)).unwrap();
        let error = Authority::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains("ca.key is missing"), "{error}");
    }

    #[test]
    fn a_key_is_kept_when_its_certificate_is_issued_again() {
        let folder = tempfile::tempdir().unwrap();
        let (authority, _) = Authority::open(folder.path()).unwrap();
        let first = authority.server(&["localhost".into(), "127.0.0.1".into()], None).unwrap();
        let again = authority.server(&["localhost".into(), "gpu-1".into()], Some(&first.key)).unwrap();
        assert!(first.key == again.key && first.cert != again.cert);
        assert!(authority.server(&["no good name é".into()], None).is_err());
    }
}
