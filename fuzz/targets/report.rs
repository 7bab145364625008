//! Fuzz target: what a device says of its zones.
//! The body is `fuzz::report` in `crates/driver/tests/common/fuzz.rs`; `cargo test -p virtio-zbd-driver --test seeds` runs it without a fuzzer.
#![no_main]

#[path = "../../crates/driver/tests/common/mod.rs"]
mod common;

libfuzzer_sys::fuzz_target!(init: common::fuzz::write_seeds("report"), |data: &[u8]| common::fuzz::report(data));
