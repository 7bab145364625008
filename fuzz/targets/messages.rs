//! Fuzz target: what a front-end may say on a vhost-user socket, descriptors and all.
//! The body is `crates/fuzzing/src/messages`; `cargo test -p virtio-zbd-fuzzing` runs it without a fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio_zbd_fuzzing::messages(data));
