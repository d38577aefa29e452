//! Handshakes, verifiers, session resumption, offload to the kernel. Identity comes only from here.
