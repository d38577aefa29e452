//! What meshctl makes of the answer of a daemon that is none: an error in bounded words, or a document that
//! means what it says.
//! Input: which document was asked for (1 byte), what the daemon sends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_fuzz::{Input, block_on};
use mesh_user::admin::{CheckRow, ConnectionList, Explanation, ReloadReport, Status, WorkloadRow, fuzz::get};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let (document, answer) = (input.byte(), input.0);
    block_on(async {
        match document % 6 {
            0 => ask::<Status>(answer).await,
            1 => ask::<Vec<WorkloadRow>>(answer).await,
            2 => ask::<ConnectionList>(answer).await,
            3 => ask::<Vec<CheckRow>>(answer).await,
            4 => ask::<Explanation>(answer).await,
            _ => ask::<ReloadReport>(answer).await,
        }
    });
});

async fn ask<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(answer: &[u8]) {
    let (near, mut far) = duplex(64 * 1024);
    let daemon = async {
        let mut request = [0; 1024];
        let asked = far.read(&mut request).await.expect("a request");
        assert!(request[..asked].ends_with(b"\r\n\r\n"), "a request in one piece");
        // meshctl may have heard enough.
        let _ = far.write_all(answer).await;
        drop(far);
    };
    let (got, ()) = tokio::join!(get::<T, _>(near, "/v1/status"), daemon);
    match got {
        Ok(document) => {
            let text = serde_json::to_string(&document).expect("a document can be written down");
            assert_eq!(serde_json::from_str::<T>(&text).expect("what was written can be read"), document);
        }
        Err(error) => assert!(error.to_string().len() <= 3 * answer.len() + 1024, "{error}"),
    }
}
