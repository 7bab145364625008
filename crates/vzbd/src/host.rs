//! Block devices of the host: which of them are zoned disks, and which must not be taken for regular ones.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use virtio_zbd_store::HostStore;

use crate::cli::Zoned;
use crate::{store_error, wrong_call};

/// Whether `path` is a zoned device of the host, to be served as one.
///
/// # Errors
/// There is no such file; it is a host-managed device and `zoned` says otherwise; it is a regular one and `zoned` does not say so.
pub(crate) fn is_host_managed(path: &Path, zoned: Zoned) -> anyhow::Result<bool> {
    let is_device = fs::metadata(path).is_ok_and(|file| file.file_type().is_block_device());
    if !is_device {
        return Ok(false);
    }
    let shown = path.display();
    match (HostStore::is_host_managed(path).map_err(store_error)?, zoned) {
        (true, Zoned::HostManaged) => Ok(true),
        (true, Zoned::None) => Err(wrong_call(format!(
            "{shown} is a host-managed zoned device: used as a regular disk it would refuse most of what is written. Leave --zoned none away"
        ))),
        (_, Zoned::HostAware) => Err(wrong_call(format!(
            "--zoned host-aware goes with `ram` and with images, not with the block device {shown}"
        ))),
        (false, Zoned::HostManaged) => Err(wrong_call(format!(
            "{shown} is a block device without zones; --zoned none uses it as a regular disk"
        ))),
        (false, Zoned::None) => Ok(false),
    }
}
