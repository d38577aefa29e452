//! The CA's folder: secrets are read only from files that nobody else can read or replace, and written so that
//! a crash leaves the old state or the new one.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{fcntl::OFlag, unistd::geteuid};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use zeroize::Zeroizing;

use super::{CaError, spiffe_bundle};
use crate::identity::JwtAuthorities;

/// No file of a CA is larger; a larger one is a mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;

fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> CaError {
    move |source| CaError::Io { path: path.to_owned(), action, source }
}

fn refused(path: &Path, what: impl Into<String>, hint: impl Into<String>) -> CaError {
    CaError::Unsafe { path: path.to_owned(), what: what.into(), hint: hint.into() }
}

/// Creates the folder with mode 0700 when it is missing, and checks that it is ours alone.
pub(super) fn open_directory(path: &Path) -> Result<(), CaError> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(io(path, "create the folder"))?;
        }
        Err(error) => return Err(io(path, "look at it")(error)),
    }
    let metadata = std::fs::symlink_metadata(path).map_err(io(path, "look at it"))?;
    if !metadata.is_dir() {
        return Err(refused(
            path,
            "is not a folder (a symbolic link does not count)",
            "Give the folder itself.",
        ));
    }
    private(path, &metadata, 0o700)
}

/// Owned by us, and nothing for group or others.
fn private(path: &Path, metadata: &std::fs::Metadata, wanted: u32) -> Result<(), CaError> {
    let user = geteuid().as_raw();
    if metadata.uid() != user {
        let what = format!("belongs to user {}, not to {user}", metadata.uid());
        return Err(refused(path, what, format!("chown {user} {}", path.display())));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        let what = format!("mode {mode:04o} lets others in");
        return Err(refused(path, what, format!("chmod {wanted:o} {}", path.display())));
    }
    Ok(())
}

/// Opens a file of a CA, see [`open_up_to`].
fn open(path: &Path) -> Result<Option<(File, std::fs::Metadata)>, CaError> {
    open_up_to(path, MAX_FILE_BYTES)
}

/// Opens without following a link and looks at what was opened, not at the name.
fn open_up_to(path: &Path, most: u64) -> Result<Option<(File, std::fs::Metadata)>, CaError> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).bits();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ELOOP as i32) => {
            return Err(refused(path, "is a symbolic link", "Put the file itself there."));
        }
        Err(error) => return Err(io(path, "open it")(error)),
    };
    let metadata = file.metadata().map_err(io(path, "look at it"))?;
    if !metadata.is_file() || metadata.len() > most {
        let what = format!("is not a file of at most {} MiB", most >> 20);
        return Err(refused(path, what, "Put the right file there."));
    }
    Ok(Some((file, metadata)))
}

/// Removes files of the folder, those that are there, and makes the first of them anew.
pub(super) fn make_anew(directory: &Path, names: &[&str]) -> Result<(), CaError> {
    for name in names {
        remove(&directory.join(name))?;
    }
    names.first().map_or(Ok(()), |name| create_private(&directory.join(name)))
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), CaError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(path, "remove it")(error)),
        _ => Ok(()),
    }
}

/// Makes an empty file that only we may read, or checks the one that is there.
pub(super) fn create_private(path: &Path) -> Result<(), CaError> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits();
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
    let file = options.open(path).map_err(io(path, "open it"))?;
    private(path, &file.metadata().map_err(io(path, "look at it"))?, 0o600)
}

/// A private key's PEM, or none when the file is not there.
pub(super) fn read_secret(path: &Path) -> Result<Option<Zeroizing<String>>, CaError> {
    let Some((mut file, metadata)) = open(path)? else { return Ok(None) };
    private(path, &metadata, 0o600)?;
    let capacity = usize::try_from(metadata.len()).unwrap_or_default() + 1;
    let mut text = Zeroizing::new(String::with_capacity(capacity));
    file.read_to_string(&mut text).map_err(io(path, "read it"))?;
    Ok(Some(text))
}

/// What only we may read, as at most so many bytes, or none when the file is not there.
pub(super) fn read_private(path: &Path, most: u64) -> Result<Option<Vec<u8>>, CaError> {
    let Some((mut file, metadata)) = open_up_to(path, most)? else { return Ok(None) };
    private(path, &metadata, 0o600)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(io(path, "read it"))?;
    Ok(Some(bytes))
}

/// Text that is no secret, or that Kubernetes mounts: links are followed.
pub(super) fn read_mounted(path: &Path) -> Result<Zeroizing<String>, CaError> {
    let flags = (OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(io(path, "open it"))?;
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(io(path, "read it"))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(refused(path, "is not a file of at most 1 MiB", "Put the right file there."));
    }
    Ok(text)
}

/// Certificates and the text they were in.
pub(super) type Certificates = (Vec<CertificateDer<'static>>, String);

/// Certificates, or none when the file is not there. Others may read it, but not write it.
pub(super) fn read_certificates(path: &Path) -> Result<Option<Certificates>, CaError> {
    let Some(text) = read_public(path)? else { return Ok(None) };
    parse_certificates(path, &text).map(|certificates| Some((certificates, text)))
}

fn parse_certificates(path: &Path, text: &str) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let invalid = |what: String| CaError::Invalid { path: path.to_owned(), what };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(format!("is no PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(invalid("holds no PEM certificate".to_owned()));
    }
    Ok(certificates)
}

/// Reads another trust domain's roots: PEM, or a bundle as SPIFFE writes it.
///
/// # Errors
/// When the file cannot be read or holds no certificate.
pub fn read_bundle(path: &Path) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let text = std::fs::read_to_string(path).map_err(io(path, "read the trust bundle"))?;
    parse_bundle(path, &text)
}

/// As [`read_bundle`], from text that was read already; `path` is for errors.
///
/// # Errors
/// When the text holds no certificate, or one that cannot be a root.
pub fn parse_bundle(path: &Path, text: &str) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let certificates = if text.trim_start().starts_with('{') {
        spiffe_bundle::read(text).map_err(|what| CaError::Invalid { path: path.to_owned(), what })?
    } else {
        parse_certificates(path, text)?
    };
    for certificate in &certificates {
        let parsed = webpki::anchor_from_trusted_cert(certificate);
        parsed.map_err(|error| CaError::Invalid {
            path: path.to_owned(),
            what: format!("bad root: {error}"),
        })?;
    }
    Ok(certificates)
}

/// The JWT authorities beside the roots that [`parse_bundle`] finds: only a bundle as SPIFFE writes it has some.
///
/// # Errors
/// When the text is such a bundle and cannot be read.
pub fn parse_jwt_authorities(path: &Path, text: &str) -> Result<JwtAuthorities, CaError> {
    if !text.trim_start().starts_with('{') {
        return Ok(JwtAuthorities::new());
    }
    spiffe_bundle::read_jwt(text).map_err(|what| CaError::Invalid { path: path.to_owned(), what })
}

/// A text of the CA's folder that is no secret, or none when the file is not there.
pub(super) fn read_public(path: &Path) -> Result<Option<String>, CaError> {
    let Some((mut file, metadata)) = open(path)? else { return Ok(None) };
    written_by_us(path, &metadata)?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(io(path, "read it"))?;
    Ok(Some(text))
}

fn written_by_us(path: &Path, metadata: &std::fs::Metadata) -> Result<(), CaError> {
    if metadata.uid() != geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        let hint = format!("chown {0} {1}; chmod go-w {1}", geteuid(), path.display());
        return Err(refused(path, "others could have written it", hint));
    }
    Ok(())
}

/// Writes a file whole or not at all: a temporary one, fsync, rename, fsync of the folder.
pub(super) fn write(directory: &Path, name: &str, content: &[u8], mode: u32) -> Result<(), CaError> {
    stage(directory, name, content, mode)?;
    put_in_place(directory, name)
}

/// Where a file is before it is put in place.
pub(super) fn staged(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!(".{name}.new"))
}

/// Writes a file beside its place; it is on disk when this returns.
pub(super) fn stage(directory: &Path, name: &str, content: &[u8], mode: u32) -> Result<(), CaError> {
    let temporary = staged(directory, name);
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(io(&temporary, "remove what a crash left")(error));
        }
        _ => {}
    }
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits();
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode).custom_flags(flags);
    let mut file = options.open(&temporary).map_err(io(&temporary, "create it"))?;
    file.write_all(content).map_err(io(&temporary, "write it"))?;
    file.sync_all().map_err(io(&temporary, "sync it"))
}

/// Gives a staged file its name.
pub(super) fn put_in_place(directory: &Path, name: &str) -> Result<(), CaError> {
    let path = directory.join(name);
    std::fs::rename(staged(directory, name), &path).map_err(io(&path, "put it in place"))?;
    let folder = File::open(directory).map_err(io(directory, "open the folder"))?;
    folder.sync_all().map_err(io(directory, "sync the folder"))
}
