//! Trust bundles of other trust domains, as SPIFFE writes them.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| mesh_user::ca::fuzz::bundle(text));
