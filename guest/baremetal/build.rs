//! Links the kernel for a machine instead of for Linux.
//!
//! The compiler's target stays the host's: no other one needs to be installed. What is different is said here and not in
//! `.cargo/config.toml`, so that it holds however cargo is called.

fn main() {
    let script = format!("{}/link.ld", std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default());
    println!("cargo::rerun-if-changed={script}");
    for arg in [
        // No C library, no start-up code, nothing that is loaded or moved at run time.
        "-nostdlib",
        "-nostartfiles",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,--gc-sections",
        "-Wl,-z,norelro",
        "-Wl,-z,noexecstack",
        &format!("-Wl,-T,{script}"),
    ] {
        println!("cargo::rustc-link-arg-bins={arg}");
    }
}
