//! What a bundle endpoint shows: an SVID of its own trust domain, or a certificate of the web's from files that are read
//! again when they change. Keys stay behind rustls's signer, and the text they were read from is wiped.

use std::{
    fmt,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use nix::unistd::geteuid;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::{ca::CaError, identity::Svid, tls::provider};

/// How often the files are looked at.
const POLL: Duration = Duration::from_secs(10);
/// A larger file is a mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Shows whatever SVID is the newest.
pub struct SvidCertificate<F>(F);

impl<F: Fn() -> Option<Arc<Svid>> + Send + Sync> SvidCertificate<F> {
    /// `newest` is asked with each handshake; none: it is refused.
    pub fn new(newest: F) -> Self {
        Self(newest)
    }
}

impl<F> fmt::Debug for SvidCertificate<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidCertificate").finish_non_exhaustive()
    }
}

impl<F: Fn() -> Option<Arc<Svid>> + Send + Sync> ResolvesServerCert for SvidCertificate<F> {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let svid = (self.0)()?;
        Some(Arc::new(CertifiedKey::new(svid.chain.clone(), Arc::clone(&svid.key))))
    }
}

/// Shows the certificate in a file, with the key in another.
pub struct CertificateFiles {
    chain: PathBuf,
    key: PathBuf,
    newest: ArcSwap<CertifiedKey>,
}

impl fmt::Debug for CertificateFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateFiles")
            .field("chain", &self.chain)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl CertificateFiles {
    /// Reads both files, PEM.
    ///
    /// # Errors
    /// When one cannot be read, others may read the key, or the two do not belong together.
    pub fn open(chain: &Path, key: &Path) -> Result<Self, CaError> {
        let newest = ArcSwap::from_pointee(read(chain, key)?);
        Ok(Self { chain: chain.to_owned(), key: key.to_owned(), newest })
    }

    /// Reads the files again until `stop`. What cannot be used is said once, and what was there before stays.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut last_error = None;
        while stop.run_until_cancelled(tokio::time::sleep(POLL)).await.is_some() {
            let files = Arc::clone(&self);
            let looked = tokio::task::spawn_blocking(move || files.look()).await;
            let error = match looked {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(error) = error.as_ref().filter(|_| error != last_error) {
                tracing::warn!(%error, "the bundle endpoint's certificate is not renewed, the one before stays");
            }
            last_error = error;
        }
    }

    /// Takes what the files hold now.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(super) fn look(&self) -> Result<(), CaError> {
        let now = read(&self.chain, &self.key)?;
        if now.cert != self.newest.load().cert {
            tracing::info!(file = %self.chain.display(), "the bundle endpoint's certificate is a new one");
            self.newest.store(Arc::new(now));
        }
        Ok(())
    }
}

impl ResolvesServerCert for CertificateFiles {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.newest.load_full())
    }
}

fn read(chain_path: &Path, key_path: &Path) -> Result<CertifiedKey, CaError> {
    let invalid = |path: &Path, what: String| CaError::Invalid { path: path.to_owned(), what };
    let (text, _) = read_bounded(chain_path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(chain_path, format!("is no PEM: {error}")))?;
    if chain.is_empty() {
        return Err(invalid(chain_path, "holds no PEM certificate".to_owned()));
    }
    let (text, metadata) = read_bounded(key_path)?;
    if metadata.uid() != geteuid().as_raw() || metadata.mode() & 0o077 != 0 {
        return Err(CaError::Unsafe {
            path: key_path.to_owned(),
            what: "others may read the private key".to_owned(),
            hint: format!("chown {0} {1}; chmod 600 {1}", geteuid(), key_path.display()),
        });
    }
    let key = PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|_| invalid(key_path, "holds no PEM private key".to_owned()))?;
    let unusable =
        |error: rustls::Error| invalid(key_path, format!("cannot be used with the certificate: {error}"));
    CertifiedKey::from_der(chain, key, &provider()).map_err(unusable)
}

/// Follows links: whoever renews certificates swaps them.
fn read_bounded(path: &Path) -> Result<(Zeroizing<String>, std::fs::Metadata), CaError> {
    let io = |action| move |source| CaError::Io { path: path.to_owned(), action, source };
    let file = std::fs::File::open(path).map_err(io("open it"))?;
    let metadata = file.metadata().map_err(io("look at it"))?;
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
        let what = "is not a file of at most 1 MiB".to_owned();
        return Err(CaError::Invalid { path: path.to_owned(), what });
    }
    // As long as it will be: one that grows would leave copies of itself behind.
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(metadata.len()).unwrap_or(0) + 1));
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(io("read it"))?;
    Ok((text, metadata))
}
