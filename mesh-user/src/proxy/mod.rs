//! Outbound and inbound connections: detection, handshake, verdict, relay, and the table of live ones.
//! It decides nothing itself: identity comes from `tls`, verdicts from `policy`, sockets from `capture`.

mod attempt;
mod connections;
mod destination;
mod detect;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;
mod handshakes;
mod http;
mod inbound;
mod kernel_path;
mod listeners;
pub mod memory;
mod mesh;
mod numbers;
mod outbound;
mod recheck;
pub mod relay;
mod shares;
mod stage;
mod view;
mod workers;

pub use connections::{Connections, Live, Requests};
pub use listeners::{Acceptors, serve};
pub use mesh::{Mesh, MeshParts};
pub use recheck::{recheck, recheck_kernel_path};
pub use view::View;
pub use workers::Workers;
