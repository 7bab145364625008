//! A stock kernel's modules: loaded by us, when the kernel asks for one, and for `modprobe`.

use std::ffi::{CStr, CString, OsString};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::system::init_module;
use virtio_zbd_guest::modules::{self, Modules};

/// The name under which the kernel starts us (and a user in the guest).
pub(crate) const MODPROBE: &str = "modprobe";

/// In the guest: a link to the host's directory with the modules.
const LINK: &str = "/run/guest-modules";

/// The kernel's own choice, and what is found along PATH before that.
const PLACES: [&str; 2] = ["/usr/sbin/modprobe", "/usr/local/sbin/modprobe"];

/// Puts us in the place of the distribution's modprobe, which knows nothing of these modules.
pub(crate) fn install(dir: &Path, guest_init: &Path) -> Result<()> {
    let _ = fs::remove_file(LINK);
    symlink(dir, LINK).with_context(|| format!("can't make {LINK}"))?;
    for place in PLACES {
        let _ = fs::remove_file(place);
        symlink(guest_init, place).with_context(|| format!("can't make {place}"))?;
    }
    let setting = "/proc/sys/kernel/modprobe";
    fs::write(setting, PLACES[0]).with_context(|| format!("can't write {setting}"))
}

/// `modprobe NAME [PARAMETER=VALUE]…`; its options are not looked at.
///
/// # Errors
/// There is no such module, or the kernel refuses it.
pub(crate) fn modprobe(args: impl Iterator<Item = OsString>) -> Result<()> {
    let words: Vec<_> = args.filter(|arg| !arg.as_encoded_bytes().starts_with(b"-")).collect();
    let Some((name, parameters)) = words.split_first() else { bail!("modprobe: no module") };
    let name = name.to_str().context("modprobe: the name is no text")?;
    let parameters: Vec<_> = parameters.iter().map(|word| word.to_string_lossy()).collect();
    let parameters = CString::new(parameters.join(" ")).context("modprobe: a parameter has a NUL")?;
    let dir = Path::new(LINK);
    let known = Modules::read(dir).with_context(|| format!("can't read {LINK}"))?;
    let order = known.order(name);
    let Some((last, before)) = order.split_last() else {
        bail!("modprobe: {name} is not among the guest's modules")
    };
    for other in before {
        load_file(&modules::file(dir, other), c"")?;
    }
    load_file(&modules::file(dir, last), &parameters)
}

/// Loads a module; it is no error if it is there.
pub(crate) fn load_file(path: &Path, parameters: &CStr) -> Result<()> {
    let module = fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
    match init_module(&module, parameters) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("can't load {}", path.display())),
    }
}
