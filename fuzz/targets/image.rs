//! Fuzz target: what an image file may hold.
//! The body is `crates/fuzzing/src/image`; `cargo test -p virtio-zbd-fuzzing` runs it without a fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio_zbd_fuzzing::image(data));
