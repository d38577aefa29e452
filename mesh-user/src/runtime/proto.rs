//! The Container Runtime Interface's messages.
#![allow(missing_docs, unreachable_pub, clippy::pedantic, reason = "generated")]
tonic::include_proto!("runtime.v1");
