//! What a SPIFFE Workload API answers, as a node reads it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| mesh_user::ca::fuzz::workload_api(data));
