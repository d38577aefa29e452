//! HTTP on the node: each request of a connection whose TLS has ended is put before a [`Gate`] before any byte of it
//! reaches the application. It never sees a policy, never opens a socket of its own, and never guesses: a request that
//! two parsers could read differently is refused, and what is forwarded is written anew from what the gate saw.
//!
//! Transparent otherwise: no `Via`, `Server`, `Date` or `X-Forwarded-*` is added. HTTP/2 over cleartext is taken by prior
//! knowledge only; an offer to upgrade from HTTP/1.1 to `h2c` is ignored, as RFC 9110 section 7.8 allows.

mod bounded;
mod detect;
mod error;
mod gate;
mod h1;
mod h2;
mod observe;
mod prefixed;
mod serve;
mod settings;
#[cfg(test)]
mod tests;

pub use detect::{Detected, detect};
pub use error::{HttpError, Refusal};
pub(crate) use gate::looks_like;
pub use gate::{Decision, Denial, Edits, Gate, PathEdit, RequestHead, ResponsePut, Version};
#[cfg(fuzzing)]
#[doc(hidden)]
pub use h1::fuzz;
pub use h1::{
    chunked::{ChunkedDecoder, Piece},
    head::{ParsedRequest, ParsedResponse, parse_request, parse_response},
    scan::{HeadScan, Scanned},
};
pub use observe::{Observer, RequestReport, Verdict};
pub use serve::{Served, look, serve};
pub use settings::{Settings, Underscores};
