//! meshd, the per-node mesh daemon.
fn main() {}
