//! HTTP/1.0 and 1.1. Heads are parsed by `httparse` behind a stricter scan of their lines, and written anew; bodies are
//! copied by length or chunk and never looked into.

mod answer;
mod body;
pub(super) mod chunked;
mod driver;
mod exchange;
mod framing;
#[cfg(fuzzing)]
pub mod fuzz;
pub(super) mod head;
mod reading;
pub(super) mod scan;
mod target;
mod write;

pub(super) use answer::{NOT_HTTP, UNREACHABLE};
pub(super) use driver::{End, drive};
pub(super) use head::is_request_only as is_forbidden_trailer;
pub(super) use target::is_host;
#[cfg(test)]
pub(super) use write::request as write_request;
