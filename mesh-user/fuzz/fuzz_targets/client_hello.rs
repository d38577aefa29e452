//! The first bytes of an inbound connection. What has been said of a beginning stays true of what follows it.
//! Input: where the beginning ends (2 bytes), the bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_fuzz::Input;
use mesh_user::tls::{Detected, MAX_CLIENT_HELLO_BYTES, detect};

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let (cut, bytes) = (input.number(), input.0);
    let (beginning, whole) = (&bytes[..usize::from(cut).min(bytes.len())], detect(bytes));
    assert_eq!(whole, detect(bytes));
    match detect(beginning) {
        Detected::NeedMore => {
            assert!(beginning.len() < MAX_CLIENT_HELLO_BYTES, "more is read than is bounded")
        }
        decided => assert_eq!(decided, whole),
    }
    if let Detected::Tls(hello) = whole {
        let ours = |name: &[u8]| name == b"meshd/1" || name.starts_with(b"istio");
        assert!(!hello.mesh || hello.alpn.iter().any(|name| ours(name)));
        let far = vec![0xff; MAX_CLIENT_HELLO_BYTES];
        assert_eq!(detect(&[bytes, &far].concat()), Detected::Tls(hello));
    }
});
