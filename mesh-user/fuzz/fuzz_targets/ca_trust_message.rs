//! What agents read as the trust that `meshd ca` tells them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| mesh_user::ca::fuzz::trust_message(data));
