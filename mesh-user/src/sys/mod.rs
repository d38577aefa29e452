//! Raw system calls: network namespaces, sockets, splice, kernel TLS, bpf. All `unsafe` lives here.
