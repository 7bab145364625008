//! Fuzz target: what a device says of itself: features, configuration space, queues.
//! The body is `fuzz::config` in `crates/driver/tests/common/fuzz.rs`; `cargo test -p virtio-zbd-driver --test seeds` runs it without a fuzzer.
#![no_main]

#[path = "../../crates/driver/tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(init: common::fuzz::write_seeds("config"), |data: &[u8]| common::fuzz::config(data));
