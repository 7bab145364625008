//! What sysfs says of a block device's queue.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::StoreError;
use crate::host::HostFault;

/// What a device's queue can do. Lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// 0: no limit.
    pub(crate) max_open_zones: u32,
    /// 0: no limit.
    pub(crate) max_active_zones: u32,
    /// The longest command that the host sends at once.
    pub(crate) max_transfer_bytes: u64,
    /// The longest append; 0: the device has none, or the kernel says nothing of it.
    pub(crate) max_append_bytes: u64,
    /// What writes to sequential zones start and end on.
    pub(crate) write_granularity_bytes: u32,
    /// What every transfer starts and ends on, and the length of every piece of memory in it.
    pub(crate) logical_block_bytes: u32,
    /// What every piece of memory in a transfer starts on: a power of two.
    pub(crate) memory_alignment_bytes: u32,
}

/// A block device's entry in sysfs.
pub(crate) struct Queue {
    dir: PathBuf,
}

/// How a block device shows its zones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Model {
    /// It has none, or may be used as if it had none.
    Regular,
    HostManaged,
}

impl Queue {
    /// The entry of the device at `path`; `None`: no block device.
    pub(crate) fn of(path: &Path) -> Result<Option<Self>, StoreError> {
        let name = path.display().to_string();
        let metadata = fs::metadata(path).map_err(StoreError::io(name, "looking for it"))?;
        if !metadata.file_type().is_block_device() {
            return Ok(None);
        }
        let device = metadata.rdev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        Ok(Some(Self { dir: PathBuf::from(format!("/sys/dev/block/{major}:{minor}")) }))
    }

    /// A device that says nothing about zones (a partition, a kernel without them) is a regular one.
    pub(crate) fn model(&self) -> Model {
        match self.text("queue/zoned").as_deref() {
            Ok("host-managed") => Model::HostManaged,
            _ => Model::Regular,
        }
    }

    /// What the device calls itself, if it does; else its name in the kernel.
    pub(crate) fn serial(&self) -> String {
        let own = ["device/serial", "serial", "wwid", "device/wwid"].map(|name| self.text(name).ok());
        let own = own.into_iter().flatten().find(|text| text.bytes().any(|byte| byte.is_ascii_graphic()));
        own.or_else(|| {
            let target = fs::canonicalize(&self.dir).ok()?;
            Some(target.file_name()?.to_string_lossy().into_owned())
        })
        .unwrap_or_default()
    }

    /// The number of this appearance of a disk under this kernel: one that was taken away and came again has another.
    pub(crate) fn appearance(&self) -> u64 {
        self.text("diskseq").ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    pub(crate) fn limits(&self, name: &str) -> Result<Limits, StoreError> {
        let number = |attribute: &'static str| -> Result<Option<u64>, StoreError> {
            let fault = |found: String| StoreError::Host {
                name: name.to_owned(),
                fault: HostFault::Attribute { attribute, found },
            };
            match self.text(&format!("queue/{attribute}")) {
                Ok(text) => text.parse().map(Some).map_err(|_| fault(text)),
                // Older kernels have fewer of them.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(fault(error.to_string())),
            }
        };
        let small = |attribute: &'static str, value: u64| {
            u32::try_from(value).map_err(|_| StoreError::Host {
                name: name.to_owned(),
                fault: HostFault::Attribute { attribute, found: value.to_string() },
            })
        };
        let logical = number("logical_block_size")?.unwrap_or(512);
        let physical = number("physical_block_size")?.unwrap_or(logical);
        let granularity = number("zone_write_granularity")?.filter(|bytes| *bytes != 0).unwrap_or(physical);
        // A mask. Before Linux 6.0 memory had to be as the blocks are, and no attribute said so.
        let alignment = number("dma_alignment")?.map_or(logical, |mask| mask.saturating_add(1));
        Ok(Limits {
            max_open_zones: small("max_open_zones", number("max_open_zones")?.unwrap_or(0))?,
            max_active_zones: small("max_active_zones", number("max_active_zones")?.unwrap_or(0))?,
            max_transfer_bytes: number("max_sectors_kb")?.unwrap_or(512).saturating_mul(1024),
            max_append_bytes: number("zone_append_max_bytes")?.unwrap_or(0),
            write_granularity_bytes: small("zone_write_granularity", granularity)?,
            logical_block_bytes: small("logical_block_size", logical)?,
            memory_alignment_bytes: small("dma_alignment", alignment.next_power_of_two())?,
        })
    }

    fn text(&self, attribute: &str) -> io::Result<String> {
        Ok(fs::read_to_string(self.dir.join(attribute))?.trim().to_owned())
    }
}
