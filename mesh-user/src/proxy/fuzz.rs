//! The door for the fuzz targets: detection on a real socket, and kernel TLS records that no kernel received.

use std::{io, time::Duration};

use tokio::net::TcpStream;

use super::detect;
pub use super::relay::fuzz::{Control, Told};

/// Whether it is mesh TLS, and else the server name in the application's own TLS.
pub async fn opening(stream: &TcpStream, patience: Duration) -> io::Result<(bool, Option<String>)> {
    Ok(match detect::opening(stream, patience).await? {
        detect::Opening::MeshTls => (true, None),
        detect::Opening::Plaintext { sni } => (false, sni),
    })
}
