//! Types that meshd's eBPF programs and its user space share: map keys, map values and constants.
//! Everything here is `no_std`, `repr(C)` and says its byte order in its name or doc.
#![no_std]
