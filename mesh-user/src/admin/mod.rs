//! The admin API on a Unix socket: what meshctl and Prometheus read. It never changes policy and never shows a key.
