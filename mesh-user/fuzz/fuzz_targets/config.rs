//! The node's file. What is accepted can be written down and means the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_user::config::Config;

fuzz_target!(|text: &str| {
    match Config::parse(text, "node.yaml") {
        Ok(config) => {
            let json = serde_json::to_string(&config).expect("a configuration can be written down");
            let again = Config::parse(&json, "node.json").unwrap_or_else(|error| panic!("{json}: {error}"));
            assert_eq!(again, config);
        }
        Err(error) => {
            let again = Config::parse(text, "node.yaml").expect_err("the same text has the same answer");
            let error = error.to_string();
            assert_eq!(error, again.to_string());
            assert!(error.starts_with("node.yaml"), "{error}");
        }
    }
});
