//! Metrics, access log, tracing set-up. Never logs a secret.
