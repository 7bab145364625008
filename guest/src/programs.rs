//! Where the workspace's own programs are.

use std::path::PathBuf;

use crate::{Error, Result};

/// Names another `vzbd`.
pub const VZBD_VARIABLE: &str = "VIRTIO_ZBD_VZBD";
/// Names another `guest-init`.
pub const GUEST_INIT_VARIABLE: &str = "VIRTIO_ZBD_GUEST_INIT";
/// Names another `guest-work`.
pub const GUEST_WORK_VARIABLE: &str = "VIRTIO_ZBD_GUEST_WORK";

/// Names another `checklist`.
pub const CHECKLIST_VARIABLE: &str = "VIRTIO_ZBD_CHECKLIST";

/// The disk daemon, from the build directory of the running program or test.
///
/// # Errors
/// It is not built.
pub fn vzbd() -> Result<PathBuf> {
    find("vzbd", VZBD_VARIABLE)
}

/// The guest's process 1, from the build directory of the running program or test.
///
/// # Errors
/// It is not built.
pub fn guest_init() -> Result<PathBuf> {
    find("guest-init", GUEST_INIT_VARIABLE)
}

/// What works in a guest, from the build directory of the running program or test.
///
/// # Errors
/// It is not built.
pub fn guest_work() -> Result<PathBuf> {
    find("guest-work", GUEST_WORK_VARIABLE)
}

/// The driver's test list for any socket, an example of `vzbd`'s package, from the build directory of the running program or test.
///
/// # Errors
/// It is not built.
pub fn checklist() -> Result<PathBuf> {
    find("examples/checklist", CHECKLIST_VARIABLE)
}

/// Cargo's build directory, `target`.
///
/// # Errors
/// Nobody can say where the running program is.
pub fn target_dir() -> Result<PathBuf> {
    let mut dir = profile_dir()?;
    dir.pop();
    Ok(dir)
}

fn find(name: &str, variable: &'static str) -> Result<PathBuf> {
    let path = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => profile_dir()?.join(name),
    };
    // Absolute, because the guest has its own working directory.
    path.canonicalize().map_err(|_| Error::NoProgram { path, variable })
}

/// Cargo puts programs into `target/<profile>/` and tests into `deps/` below it.
fn profile_dir() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(Error::io("find", "the running program"))?;
    let mut dir = own.parent().map(PathBuf::from).unwrap_or_default();
    if dir.file_name().is_some_and(|dir| dir == "deps" || dir == "examples") {
        dir.pop();
    }
    Ok(dir)
}
