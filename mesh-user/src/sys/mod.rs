//! Raw system calls: network namespaces, sockets, splice, kernel TLS, bpf. All `unsafe` lives here.

pub mod ktls;
pub mod socket;
pub mod splice;
