//! One immutable snapshot of workloads, services and addresses.
