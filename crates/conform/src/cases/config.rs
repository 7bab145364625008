//! What the configuration space has to say: V5 to V11.

use alloc::format;

use virtio_zbd_spec::{Features, Model, SECTOR_LEN_BYTES};

use crate::bench::{Bench, Verdict, skip};
use crate::case::Case;
use crate::link::CONFIG_LEN_BYTES;

pub(super) const CASES: &[Case] = &[
    Case::required(
        "V5-a",
        "the zoned model is one of the three",
        "With ZONED negotiated, `model` is NONE, HM or HA (5.2.5.2).",
        model_is_known,
    ),
    Case::required(
        "V6-a",
        "zone_sectors is set",
        "On a host-managed or host-aware disk `zone_sectors` is the size of a zone, so not 0 (5.2.5.2).",
        zone_sectors_is_set,
    ),
    Case::required(
        "V8-b",
        "max_open_zones can be reached",
        "`max_open_zones` is how many zones can be open, and an open zone is active, so it is no more than \
         `max_active_zones` where both are limits (5.2.5.2).",
        max_open_fits_max_active,
    ),
    Case::required(
        "V9-a",
        "max_append_sectors fits a request",
        "`max_append_sectors` is no longer than `seg_max` · `size_max` (5.2.5.2).",
        append_limit_fits_a_request,
    ),
    Case::required(
        "V10-a",
        "write_granularity is a number of sectors",
        "`write_granularity` is what positions and lengths of writes are multiples of, in bytes; both are whole sectors \
         (5.2.5.2, 5.2.6).",
        granularity_is_in_sectors,
    ),
    Case::ours(
        "V10-b",
        "write_granularity is a power of two",
        "The specification does not say so; drivers take it as their physical block size, which has to be one (5.2.5.2).",
        granularity_is_a_power_of_two,
    ),
    Case::ours(
        "V10-c",
        "zones are whole granules",
        "A zone's start is a multiple of `zone_sectors` and its first write goes there, aligned to `write_granularity`: zones \
         of another length can't be written (5.2.6.1).",
        zones_are_whole_granules,
    ),
    Case::required(
        "V11-a",
        "unused2 is 0",
        "The bytes behind `model` are set to 0 (5.2.5.2).",
        padding_behind_the_model_is_zero,
    ),
    Case::required(
        "S1-a",
        "unused0 and unused1 are 0",
        "The bytes behind `writeback` and behind `write_zeroes_may_unmap` are set to 0 (5.2.5.2).",
        padding_is_zero,
    ),
    Case::required(
        "S2-a",
        "the configuration reaches to its end",
        "The zoned characteristics stand at byte 72 to 96 of the configuration; with ZONED they can be read (5.2.4).",
        configuration_is_long_enough,
    ),
    Case::required(
        "S2-b",
        "the zoned fields can't be written",
        "All fields of the zoned characteristics are read-only (5.2.5).",
        zoned_fields_are_read_only,
    ),
    Case::required(
        "S3-a",
        "the number of queues is set",
        "With MQ, `num_queues` is the number of queues, of which there is one at least (5.2.2, 5.2.4).",
        queues_are_counted,
    ),
    Case::required(
        "V32-a",
        "secure erase is aligned to zones",
        "With ZONED and SECURE_ERASE negotiated, `secure_erase_sector_alignment` is a multiple of `zone_sectors` (5.2.6.2).",
        secure_erase_is_aligned_to_zones,
    ),
];

fn model_is_known(bench: &mut Bench<'_>) -> Verdict {
    let disk = bench.disk()?;
    let Some(zoned) = disk.zoned else { return skip("the disk does not offer ZONED") };
    bench.config()?;
    bench.check(Model::try_from(zoned.model).is_ok(), "model 0, 1 or 2", format!("model {}", zoned.model))
}

fn zone_sectors_is_set(bench: &mut Bench<'_>) -> Verdict {
    let (_, zoned) = bench.zoned()?;
    bench.config()?;
    bench.check(zoned.zone_sectors > 0, "zone_sectors above 0", "0")
}

fn max_open_fits_max_active(bench: &mut Bench<'_>) -> Verdict {
    let (_, zoned) = bench.zoned()?;
    if zoned.max_open == 0 || zoned.max_active == 0 {
        return skip("max_open_zones or max_active_zones is 0: no limit");
    }
    bench.config()?;
    let found = format!("max_open_zones {}", zoned.max_open);
    bench.check(
        zoned.max_open <= zoned.max_active,
        format!("no more than max_active_zones {}", zoned.max_active),
        found,
    )
}

fn append_limit_fits_a_request(bench: &mut Bench<'_>) -> Verdict {
    let (disk, zoned) = bench.zoned()?;
    if !disk.accepted.contains(Features::SEG_MAX | Features::SIZE_MAX) {
        return skip("SEG_MAX and SIZE_MAX are not both offered");
    }
    bench.config()?;
    let (segments, size) = (u64::from(disk.config.seg_max.get()), u64::from(disk.config.size_max.get()));
    let max = segments * size;
    bench.check(
        zoned.max_append_sectors * SECTOR_LEN_BYTES <= max,
        format!("no more than {segments} · {size} bytes"),
        format!("max_append_sectors {}", zoned.max_append_sectors),
    )
}

fn granularity_is_in_sectors(bench: &mut Bench<'_>) -> Verdict {
    let (_, zoned) = bench.zoned()?;
    bench.config()?;
    let granularity = u64::from(zoned.granularity_bytes);
    let fits = granularity > 0 && granularity.is_multiple_of(SECTOR_LEN_BYTES);
    bench.check(fits, "a multiple of 512, above 0", format!("write_granularity {granularity}"))
}

fn granularity_is_a_power_of_two(bench: &mut Bench<'_>) -> Verdict {
    let (_, zoned) = bench.zoned()?;
    bench.config()?;
    let found = format!("write_granularity {}", zoned.granularity_bytes);
    bench.check(zoned.granularity_bytes.is_power_of_two(), "a power of two", found)
}

fn zones_are_whole_granules(bench: &mut Bench<'_>) -> Verdict {
    let (_, zoned) = bench.zones()?;
    bench.config()?;
    bench.check(
        zoned.zone_sectors.is_multiple_of(zoned.granule()),
        format!("a multiple of {} sectors", zoned.granule()),
        format!("zone_sectors {}", zoned.zone_sectors),
    )
}

fn padding_behind_the_model_is_zero(bench: &mut Bench<'_>) -> Verdict {
    bench.zoned()?;
    let config = bench.config()?;
    bench.check(config[93..96] == [0; 3], "three bytes of 0 at 93", format!("{:?}", &config[93..96]))
}

fn padding_is_zero(bench: &mut Bench<'_>) -> Verdict {
    bench.disk()?;
    let config = bench.config()?;
    bench.check(config[33] == 0, "0 at byte 33", format!("{}", config[33]))?;
    bench.check(config[57..60] == [0; 3], "three bytes of 0 at 57", format!("{:?}", &config[57..60]))
}

fn configuration_is_long_enough(bench: &mut Bench<'_>) -> Verdict {
    if bench.disk()?.zoned.is_none() {
        return skip("the disk does not offer ZONED");
    }
    bench.config()?;
    let len = bench.config_len_bytes();
    // Three bytes of padding at the end: nothing is missing without them, and Linux' own headers count to 93.
    bench.check(len >= CONFIG_LEN_BYTES - 3, "96 bytes", format!("{len} bytes"))
}

fn zoned_fields_are_read_only(bench: &mut Bench<'_>) -> Verdict {
    bench.zoned()?;
    let before = bench.config()?;
    for offset in 72..CONFIG_LEN_BYTES {
        bench.write_config(offset, !before[offset])?;
        let after = bench.link_config()?;
        if after[72..] != before[72..] {
            bench.write_config(offset, before[offset])?;
            return bench.fail(format!("{:?} as before", &before[72..]), format!("{:?}", &after[72..]));
        }
    }
    Ok(())
}

fn queues_are_counted(bench: &mut Bench<'_>) -> Verdict {
    let disk = bench.disk()?;
    if !disk.accepted.contains(Features::MQ) {
        return skip("the disk does not offer MQ");
    }
    bench.config()?;
    bench.check(disk.config.num_queues.get() > 0, "num_queues above 0", "0")
}

fn secure_erase_is_aligned_to_zones(bench: &mut Bench<'_>) -> Verdict {
    let (disk, zoned) = bench.zones()?;
    if !disk.accepted.contains(Features::SECURE_ERASE) {
        return skip("the disk does not offer SECURE_ERASE");
    }
    bench.config()?;
    let alignment = u64::from(disk.config.secure_erase_sector_alignment.get());
    bench.check(
        alignment > 0 && alignment.is_multiple_of(zoned.zone_sectors),
        format!("a multiple of {}", zoned.zone_sectors),
        format!("secure_erase_sector_alignment {alignment}"),
    )
}
