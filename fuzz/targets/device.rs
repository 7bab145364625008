//! Fuzz target: what a driver may put into memory and rings, on a disk with real zones.
//! The body is `crates/fuzzing/src/device`; `cargo test -p virtio-zbd-fuzzing` runs it without a fuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio_zbd_fuzzing::device(data));
