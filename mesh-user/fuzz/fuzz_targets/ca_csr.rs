//! Certificate signing requests as callers of `meshd ca` send them: a key is certified for nobody who did not prove to have it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| mesh_user::ca::fuzz::csr(data));
