//! The service asked by real gRPC clients over loopback: who gets what, who is refused and why, and what the audit says.

mod certificates;
mod ground;
mod hostile;
mod trust;
