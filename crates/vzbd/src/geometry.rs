//! From the options to a checked geometry.

use virtio_zbd_zones::{Geometry, GeometryConfig};

use crate::cli::GeometryArgs;
use crate::size::Size;
use crate::wrong_call;

const ZONE_SIZE_BYTES: u64 = 64 << 20;
const MAX_OPEN_ZONES: u32 = 14;
const MAX_ACTIVE_ZONES: u32 = 14;
const BLOCK_SIZE_BYTES: u64 = 4096;
const MAX_APPEND_BYTES: u64 = 512 << 10;

/// The geometry of a zoned disk of `size`.
///
/// # Errors
/// A value that can't be: says which, what it is and what it may be.
pub(crate) fn of(size: Size, args: &GeometryArgs) -> anyhow::Result<Geometry> {
    let zone_size = args.zone_size.unwrap_or(ZONE_SIZE_BYTES.into());
    let max_active_zones = args.max_active.unwrap_or(MAX_ACTIVE_ZONES);
    // A lower active limit that was asked for lowers the open limit that was not.
    let max_open_default =
        if max_active_zones == 0 { MAX_OPEN_ZONES } else { MAX_OPEN_ZONES.min(max_active_zones) };
    let block_size = args.block_size.unwrap_or(BLOCK_SIZE_BYTES.into());
    let config = || -> Result<GeometryConfig, String> {
        Ok(GeometryConfig {
            capacity_sectors: size.sectors("--size")?,
            zone_sectors: zone_size.sectors_u32("--zone-size")?,
            zone_capacity_sectors: args.zone_capacity.unwrap_or(zone_size).sectors_u32("--zone-capacity")?,
            conventional_zones: args.conventional.unwrap_or(0),
            max_open_zones: args.max_open.unwrap_or(max_open_default),
            max_active_zones,
            max_append_sectors: args
                .max_append
                .unwrap_or(MAX_APPEND_BYTES.into())
                .sectors_u32("--max-append")?,
            write_granularity_bytes: u32::try_from(block_size.bytes).map_err(|_| {
                format!("--block-size is {block_size}; it must be a power of two from 512 to 64K")
            })?,
        })
    };
    Geometry::new(config().map_err(wrong_call)?).map_err(wrong_call)
}

/// For a disk without zones: none of the zones' options may be given.
///
/// # Errors
/// One is.
pub(crate) fn refuse(args: &GeometryArgs, why: &str) -> anyhow::Result<()> {
    let GeometryArgs { zone_size, zone_capacity, conventional, max_open, max_active, block_size, max_append } =
        args;
    let sizes = [
        ("--zone-size", zone_size.is_some()),
        ("--zone-capacity", zone_capacity.is_some()),
        ("--conventional", conventional.is_some()),
        ("--max-open", max_open.is_some()),
        ("--max-active", max_active.is_some()),
        ("--block-size", block_size.is_some()),
        ("--max-append", max_append.is_some()),
    ];
    match sizes.iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(wrong_call(format!("{option} does not go with {why}"))),
        None => Ok(()),
    }
}
