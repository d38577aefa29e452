//! meshctl, the operator's tool for meshd.
fn main() {}
