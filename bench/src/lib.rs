//! Micro-benchmarks of meshd.
