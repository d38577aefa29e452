//! Outbound and inbound connections: detection, handshake, verdict, relay.

pub mod relay;
