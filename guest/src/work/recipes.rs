//! The recipes themselves.

use super::{Needs, Recipe};

/// All of them, in the order in which they are of interest.
pub const ALL: &[Recipe] = &[ZONEFS, ZONEFS_AGGREGATED, BTRFS, F2FS, DM_ZONED, FIO];

/// zonefs, where each zone is a file: sequential direct writes one at a time and by the ring at depths up to 64, at offsets and
/// with `O_APPEND`; resets and finishes by truncation; what it must refuse.
pub const ZONEFS: Recipe = Recipe {
    name: "zonefs",
    programs: &["mkzonefs"],
    needs: ANY,
    make: r#"mkzonefs -f "$disk" >/dev/null"#,
    // Each file that is open for writing is a zone that is open explicitly.
    mount: r#"mount -t zonefs -o explicit-open "$disk" "$dir""#,
    work: ZONEFS_WORK,
    unmount: UNMOUNT,
    check: ":",
};

/// zonefs with all conventional zones in one file, and zones that the device opens by itself.
pub const ZONEFS_AGGREGATED: Recipe = Recipe {
    name: "zonefs-aggregated",
    programs: &["mkzonefs"],
    needs: ANY,
    make: r#"mkzonefs -f -o aggr_cnv "$disk" >/dev/null"#,
    mount: r#"mount -t zonefs "$disk" "$dir""#,
    work: ZONEFS_WORK,
    unmount: UNMOUNT,
    check: ":",
};

/// btrfs, the one that writes by zone append.
pub const BTRFS: Recipe = Recipe {
    name: "btrfs",
    programs: &["mkfs.btrfs", "btrfs"],
    needs: Needs { active_zones: 8, ..ANY },
    make: r#"mkfs.btrfs -q -f -O zoned -d single -m single "$disk""#,
    mount: r#"mount "$disk" "$dir""#,
    work: FILES_WORK,
    unmount: UNMOUNT,
    check: r#"btrfs check --readonly --check-data-csum "$disk" >/tmp/check 2>&1 || { cat /tmp/check >&2; return 1; }"#,
};

/// f2fs, its super blocks and tables in conventional zones.
pub const F2FS: Recipe = Recipe {
    name: "f2fs",
    programs: &["mkfs.f2fs", "fsck.f2fs"],
    // As many logs write at once.
    needs: Needs { conventional_zones: true, active_zones: 6, ..ANY },
    make: r#"mkfs.f2fs -q -f -m "$disk" >/dev/null"#,
    mount: r#"mount "$disk" "$dir""#,
    work: FILES_WORK,
    unmount: UNMOUNT,
    // Debian 12's fsck.f2fs does not know zones whose capacity is less than their length: it counts segments as free that the
    // kernel rightly does not, says so, and ends with status 4. All else that it checks must be right.
    check: r#"fsck.f2fs --dry-run "$disk" >/tmp/check || [ $? = 4 ]
        grep -q 'Write pointers consistency.*Ok' /tmp/check || { cat /tmp/check >&2; return 1; }
        if grep -v 'free segment_count' /tmp/check | grep Fail >&2; then return 1; fi"#,
};

/// dm-zoned, which makes a regular disk of a zoned one; ext4 on it, filled so that it has to reclaim zones.
pub const DM_ZONED: Recipe = Recipe {
    name: "dm-zoned",
    programs: &["dmzadm", "dmsetup", "depmod", "mkfs.ext4", "e2fsck"],
    needs: Needs { conventional_zones: true, whole_capacity: true, active_zones: 0 },
    // dmzadm asks for a module where the kernel has it built in: it is told so.
    make: r#"
        modules; dmzadm --format "$disk" --force >/dev/null
        start; mkfs.ext4 -q -F "$target"; stop"#,
    mount: r#"modules; start; mount "$target" "$dir""#,
    work: FILES_WORK,
    unmount: r#"umount "$dir"; stop"#,
    check: r#"
        modules
        dmzadm --check "$disk" >/tmp/check 2>&1 || { cat /tmp/check >&2; return 1; }
        start; e2fsck -f -n "$target" >/tmp/check 2>&1 || { cat /tmp/check >&2; return 1; }; stop
    }
    target=/dev/mapper/dmz-$name
    modules() {
        at=/lib/modules/$(uname -r)
        [ ! -e "$at" ] || return 0
        mkdir -p "$at"; echo kernel/drivers/md/dm-zoned.ko >"$at/modules.builtin"; : >"$at/modules.order"
        depmod 2>/dev/null
    }
    # There is no udev to make the node.
    start() { dmzadm --start "$disk" >/dev/null; dmsetup mknodes; }
    stop() { dmzadm --stop "$disk" >/dev/null"#,
};

/// fio on the disk itself: its zoned mode, sequential and random, one write at a time and up to 64, with each of its ways to
/// write, and everything verified; in the next round what is there is verified again.
pub const FIO: Recipe = Recipe {
    name: "fio",
    programs: &["fio"],
    needs: ANY,
    // A disk may have zones that can't be reset: then those that are worked in.
    make: r#"
        first=$((conventional * zone_mib * 2048))
        blkzone reset -o $first "$disk" 2>/dev/null || blkzone reset -o $first -c 12 "$disk""#,
    mount: ":",
    work: r#"
        # One active zone is left by the round before.
        limit=4
        open=$(cat $queue/max_open_zones) active=$(cat $queue/max_active_zones)
        [ $open = 0 ] || [ $open -ge $limit ] || limit=$open
        [ $active = 0 ] || [ $active -gt $limit ] || limit=$((active - 1))
        # Two groups of zones: one that each of a round's jobs writes anew, and one for the next round to look at.
        group=$((6 * zone_mib)); first=$((conventional * zone_mib))
        size=$((8 * amount / 100 + 1)); [ $size -le $((group / 2)) ] || size=$((group / 2))
        fio() {
            command fio --filename="$disk" --direct=1 --zonemode=zbd --max_open_zones=$limit --bs=64k \
                --offset=$((first + $1 * group))M --size=${group}M --io_size=${size}M --verify=crc32c --verify_fatal=1 \
                --randseed=$((seed % 1000000 + $2)) --output-format=terse --terse-version=3 $3 >/tmp/fio 2>&1 ||
                { say "fio: $3"; cat /tmp/fio >&2; return 1; }
        }
        # What the round before has left.
        [ $1 = 0 ] || fio 1 $(($1 - 1)) '--name=again --rw=read --ioengine=psync'
        # fio resets the zones of a job that it will verify.
        jobs=
        for how in 'psync 1' 'libaio 8' 'io_uring 64'; do
            set -- $1 $how
            how="--stonewall --do_verify=1 --ioengine=$2 --iodepth=$3"
            jobs="$jobs --name=sequential $how --rw=write --name=random $how --rw=randwrite"
            jobs="$jobs --name=small $how --rw=randwrite --bs=4k --io_size=$((size / 4 + 1))M"
        done
        fio 0 $1 "$jobs"
        blkzone reset -o $((first * 2048)) -c 12 "$disk"
        fio 1 $1 '--name=last --rw=write --do_verify=0 --ioengine=io_uring --iodepth=8'"#,
    unmount: ":",
    check: ":",
};

const ANY: Needs = Needs { conventional_zones: false, whole_capacity: false, active_zones: 0 };

const FILES_WORK: &str = r#""$work" files "$dir" $seed $1 $((6 * amount))"#;
const ZONEFS_WORK: &str = r#""$work" zonefs "$dir" $seed $1 $((2 * amount))"#;
const UNMOUNT: &str = r#"umount "$dir""#;
