//! The service-account token that a CA is shown. It is read from what Kubernetes mounts, goes into one request, and is wiped.

use std::path::Path;

use tonic::metadata::{Ascii, MetadataValue};

use super::RemoteError;
use crate::ca::files;

/// A longer token is none.
const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// Read anew for each call: Kubernetes replaces it long before it ends.
pub(super) async fn bearer(path: &Path) -> Result<MetadataValue<Ascii>, RemoteError> {
    let wrong = |what: String| RemoteError::Token { path: path.to_owned(), what };
    let file = path.to_owned();
    let read = tokio::task::spawn_blocking(move || files::read_mounted(&file)).await;
    let token = match read {
        Ok(Ok(token)) => token,
        Ok(Err(error)) => return Err(wrong(format!("{error}; mount a service-account token there"))),
        Err(_) => return Err(wrong("cannot be read".to_owned())),
    };
    let token = token.trim();
    if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
        return Err(wrong("holds no token: mount a service-account token there".to_owned()));
    }
    let mut value: MetadataValue<Ascii> = zeroize::Zeroizing::new(format!("Bearer {token}"))
        .parse()
        .map_err(|_| wrong("holds what is no token".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}
