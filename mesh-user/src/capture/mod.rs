//! The eBPF side: loading, maps, enrolment, listeners inside workload namespaces. Nothing here decides policy.
