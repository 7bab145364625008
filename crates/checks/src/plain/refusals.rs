//! What the driver refuses itself, before anything is sent.

use alloc::vec;
use alloc::vec::Vec;

use virtio_zbd_driver::{Command, Error, Invalid, RequestType};

use crate::data::len_bytes;
use crate::rig::{Outcome, Rig, failed, not_here, refused};

pub(super) fn out_of_range(rig: &mut Rig<'_>) -> Outcome {
    let capacity_sectors = rig.disk.capacity_sectors();
    let block = rig.block_sectors();
    let end = capacity_sectors - capacity_sectors % block;
    let far = u64::MAX - u64::MAX % block - block;
    let cases =
        [(end, block), (end - block, 2 * block), (end + 7 * block, block), (far, block), (far, 4 * block)];
    for (sector, sectors) in cases {
        let expected = Invalid::OutOfRange { sector, sectors, capacity_sectors };
        let mut data = vec![0; len_bytes(sectors)];
        let what = |call: &str| alloc::format!("{call} of {sectors} sectors at {sector}");
        refused(what("read"), rig.disk.read(sector, &mut data), expected)?;
        let read = Command::Read { sector, buffer: data.clone() };
        comes_back(rig, &what("submitted read"), read, expected.into(), &data)?;
        if rig.disk.read_only() {
            continue;
        }
        refused(what("write"), rig.disk.write(sector, &data), expected)?;
        let write = Command::Write { sector, buffer: data.clone() };
        comes_back(rig, &what("submitted write"), write, expected.into(), &data)?;
        let limits = rig.disk.limits();
        if limits.discard.is_some() {
            refused(what("discard"), rig.disk.discard(sector, sectors), expected)?;
        }
        if limits.write_zeroes.is_some() {
            refused(what("write zeroes"), rig.disk.write_zeroes(sector, sectors, false), expected)?;
        }
        if limits.secure_erase.is_some() {
            refused(what("secure erase"), rig.disk.secure_erase(sector, sectors), expected)?;
        }
    }
    Ok(())
}

pub(super) fn misaligned(rig: &mut Rig<'_>) -> Outcome {
    let unit_bytes = rig.disk.block_len_bytes();
    let block = rig.block_sectors();
    let mut cases = vec![(0, 1), (0, 511), (0, len_bytes(block) + 1), (0, len_bytes(block) - 1)];
    if block > 1 {
        cases.extend([
            (1, len_bytes(block)),
            (block - 1, len_bytes(block)),
            (0, 512),
            (0, len_bytes(block) + 512),
        ]);
    }
    for (sector, len) in cases {
        let expected = Invalid::Misaligned { sector, len_bytes: len as u64, unit_bytes };
        let mut data = vec![0; len];
        let what = |call: &str| alloc::format!("{call} of {len} bytes at sector {sector}");
        refused(what("read"), rig.disk.read(sector, &mut data), expected)?;
        comes_back(
            rig,
            &what("submitted read"),
            Command::Read { sector, buffer: data.clone() },
            expected.into(),
            &data,
        )?;
        if !rig.disk.read_only() {
            refused(what("write"), rig.disk.write(sector, &data), expected)?;
            comes_back(
                rig,
                &what("submitted write"),
                Command::Write { sector, buffer: data.clone() },
                expected.into(),
                &data,
            )?;
        }
    }
    let empty = Invalid::Empty { sector: 0 };
    refused("read of nothing", rig.disk.read(0, &mut []), empty)?;
    comes_back(
        rig,
        "submitted read of nothing",
        Command::Read { sector: 0, buffer: Vec::new() },
        empty.into(),
        &[],
    )?;
    if !rig.disk.read_only() {
        refused("write of nothing", rig.disk.write(0, &[]), empty)?;
    }
    Ok(())
}

/// One request for more than one carries. (The synchronous calls split it.)
pub(super) fn too_long(rig: &mut Rig<'_>) -> Outcome {
    /// More memory than that is not taken for a request that is never sent.
    const LEN_BYTES_MAX: usize = 64 << 20;
    let limits = rig.disk.limits();
    let len = limits.transfer_len_bytes_max.saturating_add(len_bytes(rig.block_sectors()));
    if len > LEN_BYTES_MAX {
        return Err(not_here("one request may carry 64 MiB or more"));
    }
    if len as u64 / 512 > rig.disk.capacity_sectors() {
        return Err(not_here("the disk is smaller than what one request carries"));
    }
    let expected = Error::Invalid(Invalid::TooLong {
        len_bytes: len as u64,
        max_bytes: limits.transfer_len_bytes_max as u64,
    });
    let data = vec![0x5a; len];
    comes_back(rig, "submitted read", Command::Read { sector: 0, buffer: data.clone() }, expected, &data)?;
    if rig.disk.read_only() {
        return Ok(());
    }
    comes_back(rig, "submitted write", Command::Write { sector: 0, buffer: data.clone() }, expected, &data)
}

pub(super) fn not_offered(rig: &mut Rig<'_>) -> Outcome {
    if rig.disk.read_only() {
        return Err(not_here("the disk is read-only"));
    }
    let limits = rig.disk.limits();
    let block = rig.block_sectors();
    let sectors = u32::try_from(block).unwrap_or(1);
    let mut tried = 0;
    let cases = [
        (limits.discard.is_some(), RequestType::Discard, Command::Discard { sector: 0, sectors }),
        (
            limits.write_zeroes.is_some(),
            RequestType::WriteZeroes,
            Command::WriteZeroes { sector: 0, sectors, unmap: true },
        ),
        (
            limits.secure_erase.is_some(),
            RequestType::SecureErase,
            Command::SecureErase { sector: 0, sectors },
        ),
        (limits.flush, RequestType::Flush, Command::Flush),
    ];
    for (offered, request, command) in cases {
        if offered {
            continue;
        }
        tried += 1;
        let result = rig.disk.submit(0, command).map_err(|rejected| rejected.error);
        refused(alloc::format!("submitted {request:?}"), result, Invalid::NotOffered(request))?;
    }
    if limits.discard.is_none() {
        refused("discard", rig.disk.discard(0, block), Invalid::NotOffered(RequestType::Discard))?;
    }
    if limits.write_zeroes.is_none() {
        let result = rig.disk.write_zeroes(0, block, false);
        refused("write zeroes", result, Invalid::NotOffered(RequestType::WriteZeroes))?;
    }
    if limits.secure_erase.is_none() {
        let result = rig.disk.secure_erase(0, block);
        refused("secure erase", result, Invalid::NotOffered(RequestType::SecureErase))?;
    }
    if tried == 0 { Err(not_here("the disk offers everything")) } else { Ok(()) }
}

pub(super) fn not_zoned(rig: &mut Rig<'_>) -> Outcome {
    if rig.disk.zoned().is_some() {
        return Err(not_here("the disk has zones"));
    }
    let expected = Error::Invalid(Invalid::NotZoned);
    refused("report", rig.disk.zones(0), expected)?;
    refused("report of one zone", rig.disk.zone(0), expected)?;
    refused("open", rig.disk.open_zone(0), expected)?;
    refused("close", rig.disk.close_zone(0), expected)?;
    refused("finish", rig.disk.finish_zone(0), expected)?;
    refused("reset", rig.disk.reset_zone(0), expected)?;
    refused("reset all", rig.disk.reset_all_zones(), expected)?;
    let data = vec![7; len_bytes(rig.block_sectors())];
    refused("append", rig.disk.append(0, &data), expected)?;
    let append = Command::Append { zone_start_sector: 0, buffer: data.clone() };
    comes_back(rig, "submitted append", append, expected, &data)
}

pub(super) fn no_such_queue(rig: &mut Rig<'_>) -> Outcome {
    let queues = rig.disk.queue_count();
    let data = vec![7; len_bytes(rig.block_sectors())];
    for queue in [queues, u16::MAX] {
        let expected = Error::Invalid(Invalid::NoSuchQueue { queue, queues });
        let rejected = rig.disk.submit(queue, Command::Read { sector: 0, buffer: data.clone() });
        match rejected {
            Err(rejected) if rejected.error == expected && rejected.buffer.as_ref() == Some(&data) => {}
            other => {
                return Err(failed(format_args!(
                    "submit on queue {queue}: expected {expected:?}, found {other:?}"
                )));
            }
        }
        refused("notify", rig.disk.notify(queue), expected)?;
        refused("complete", rig.disk.complete(queue), expected)?;
    }
    Ok(())
}

/// A submitted request that is refused, and its buffer comes back as it was.
fn comes_back(
    rig: &mut Rig<'_>,
    what: &str,
    command: Command<Vec<u8>>,
    expected: Error,
    data: &[u8],
) -> Outcome {
    match rig.disk.submit(0, command) {
        Err(rejected) if rejected.error == expected => {
            if rejected.buffer.as_deref() == Some(data) {
                Ok(())
            } else {
                Err(failed(format_args!("{what}: its buffer did not come back as it was")))
            }
        }
        Err(rejected) => {
            Err(failed(format_args!("{what}: expected {expected:?}, found {:?}", rejected.error)))
        }
        Ok(token) => {
            Err(failed(format_args!("{what}: expected {expected:?}, found it was submitted as {token:?}")))
        }
    }
}
