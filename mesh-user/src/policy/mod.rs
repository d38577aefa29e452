//! Istio security policy: parsing, compilation per workload, decisions. Pure: no I/O.
