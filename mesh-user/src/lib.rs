//! meshd as a library: everything the daemon `meshd` and the operator's tool `meshctl` share.
//!
//! The modules are layers; a module uses only those below it (`tests/layers.rs` reads the imports and
//! holds this):
//!
//! ```text
//! daemon                   puts the parts together, runs them, takes them down
//! admin                    HTTP API on a Unix socket, metrics endpoint
//! proxy      http          outbound, inbound, relay, detection | requests put before a gate
//! capture                  loading eBPF, maps, listeners inside workload namespaces, enrolment
//! discovery  ca  ext_authz sources -> World | the certificate authority | external authorizers
//! policy     jwt  tls      pure decisions, no I/O | handshakes, verifiers, offload to the kernel
//! world      config        one immutable snapshot of workloads, services, addresses | the node's file
//! identity   runtime       SPIFFE IDs, SVIDs, trust bundles | where pods live, by the container runtime
//! telemetry  sys           metrics, access log, tracing | netns, sockets, splice, kTLS: all `unsafe`
//! ```

pub mod admin;
pub mod ca;
pub mod capture;
pub mod config;
pub mod daemon;
pub mod discovery;
pub mod ext_authz;
pub mod http;
pub mod identity;
pub mod jwt;
pub mod policy;
pub mod proxy;
pub mod runtime;
pub mod sys;
pub mod telemetry;
pub mod tls;
pub mod world;
