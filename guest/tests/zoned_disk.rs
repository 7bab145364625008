//! A Linux guest on our zoned disk: what it sees, what it may do, and which error it gets.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod common;

use std::process::Command;

use common::{OrFail, exec_in_guest};
use virtio_zbd_guest::{Geometry, ServedDisk, programs};

/// 64 zones of 16 MiB, 12 MiB writable, 4 conventional; 6 may be open, 8 active.
fn disk() -> ServedDisk {
    let geometry = Geometry::new("1G", "16M").zone_capacity("12M").conventional(4).max_open(6).max_active(8);
    ServedDisk::create(&geometry).or_fail("no disk")
}

/// Shell words for what follows: the sector of zone n, its line in the report, its condition, and a call that must fail with
/// an error text.
const WORDS: &str = r#"
    set -eu
    export LC_ALL=C
    zone() { echo $(($1 * 32768)); }
    line() { blkzone report -o $(zone $1) -c 1 /dev/vda; }
    is() { line $1 | grep -q "$2" || { echo "zone $1 is not $2: $(line $1)" >&2; exit 1; }; }
    refused() {
        text="$1"; shift
        if "$@" 2>/tmp/refusal; then echo "not refused: $*" >&2; exit 1; fi
        grep -q "$text" /tmp/refusal || { echo "$*: not '$text' but:" >&2; cat /tmp/refusal >&2; exit 1; }
    }
    write() { dd if=/dev/urandom of=/dev/vda bs=4096 count=${2:-1} seek=$(($(zone $1) / 8 + ${3:-0})) oflag=direct conv=notrunc status=none; }
"#;

fn in_guest(disk: &ServedDisk, script: &str) -> String {
    exec_in_guest(disk.socket(), &format!("{WORDS}{script}"))
}

#[test]
fn the_guest_reads_every_characteristic() {
    let disk = disk();
    let seen = in_guest(
        &disk,
        r"
        cd /sys/block/vda/queue
        cat zoned nr_zones chunk_sectors max_open_zones max_active_zones zone_append_max_bytes \
            logical_block_size physical_block_size zone_write_granularity discard_max_bytes write_cache
        cat ../size ../serial
        ",
    );
    let lines: Vec<&str> = seen.lines().collect();
    let (serial, rest) = lines.split_last().unwrap();
    assert_eq!(
        rest,
        [
            "host-managed",
            "64",
            "32768",
            "6",
            "8",
            "524288",
            "4096",
            "4096",
            "4096",
            "0",
            "write back",
            "2097152"
        ]
    );
    assert_eq!(serial.len(), 20, "{serial}");
}

#[test]
fn management_of_zones_and_the_same_report_on_both_sides() {
    let mut disk = disk();
    let guests_view = in_guest(
        &disk,
        r#"
        # Single zones.
        blkzone open -o $(zone 4) -c 1 /dev/vda;   is 4 'zcond: 3(oe)'
        blkzone open -o $(zone 4) -c 1 /dev/vda;   is 4 'zcond: 3(oe)'
        blkzone close -o $(zone 4) -c 1 /dev/vda;  is 4 'zcond: 1(em)'
        write 5 3;                                 is 5 'wptr 0x000018.*zcond: 2(oi)'
        blkzone open -o $(zone 5) -c 1 /dev/vda;   is 5 'wptr 0x000018.*zcond: 3(oe)'
        blkzone close -o $(zone 5) -c 1 /dev/vda;  is 5 'wptr 0x000018.*zcond: 4(cl)'
        blkzone finish -o $(zone 5) -c 1 /dev/vda; is 5 'zcond:14(fu)'
        blkzone reset -o $(zone 5) -c 1 /dev/vda;  is 5 'wptr 0x000000.*zcond: 1(em)'
        # To the capacity: full by itself.
        dd if=/dev/zero of=/dev/vda bs=1M count=12 seek=$((6 * 16)) oflag=direct conv=notrunc status=none
        is 6 'zcond:14(fu)'

        # Ranges.
        blkzone open -o $(zone 10) -c 4 /dev/vda
        for z in 10 11 12 13; do is $z 'zcond: 3(oe)'; done
        write 11
        blkzone close -o $(zone 10) -c 4 /dev/vda
        is 10 'zcond: 1(em)'; is 11 'zcond: 4(cl)'
        blkzone finish -o $(zone 10) -c 3 /dev/vda
        for z in 10 11 12; do is $z 'zcond:14(fu)'; done
        blkzone reset -o $(zone 10) -c 4 /dev/vda
        for z in 10 11 12 13; do is $z 'zcond: 1(em)'; done

        # Conventional zones take no management, but any write.
        refused 'error' blkzone reset -o $(zone 1) -c 1 /dev/vda
        write 1 1 100; write 1 1 5; is 1 'zcond: 0(nw)'

        # Something of everything for the comparison, nothing left open.
        write 20 7; blkzone close -o $(zone 20) -c 1 /dev/vda
        write 21 1; blkzone finish -o $(zone 21) -c 1 /dev/vda
        write 63 9; blkzone close -o $(zone 63) -c 1 /dev/vda
        blkzone report /dev/vda
        "#,
    );
    disk.stop().or_fail("stop");
    let report = Command::new(programs::vzbd().or_fail("no vzbd"))
        .args(["report", "--format", "blkzone"])
        .arg(disk.image_path().unwrap())
        .output()
        .unwrap();
    assert!(report.status.success(), "{}", String::from_utf8_lossy(&report.stderr));
    let our_view = String::from_utf8(report.stdout).unwrap();
    assert_eq!(guests_view.lines().count(), 64);
    assert_eq!(guests_view, our_view);
    let conditions = |text: &str, code: &str| text.matches(&format!("zcond:{code}")).count();
    assert_eq!(["14(fu)", " 4(cl)", " 0(nw)", " 1(em)"].map(|c| conditions(&our_view, c)), [2, 2, 4, 56]);
}

#[test]
fn limits_are_refused_with_their_own_errors() {
    in_guest(
        &disk(),
        r#"
        # Six open; the seventh is ETOOMANYREFS (L10).
        blkzone open -o $(zone 4) -c 6 /dev/vda
        refused 'Too many references' blkzone open -o $(zone 10) -c 1 /dev/vda
        is 10 'zcond: 1(em)'
        refused 'Too many references' write 10
        is 10 'wptr 0x000000.*zcond: 1(em)'
        # Four of them written and closed, and four more: eight active. The ninth is EOVERFLOW, whichever limit else is met.
        for z in 4 5 6 7; do write $z; done
        blkzone close -o $(zone 4) -c 4 /dev/vda
        write 10; write 11
        is 10 'zcond: 2(oi)'
        refused 'Value too large' blkzone open -o $(zone 12) -c 1 /dev/vda
        refused 'Value too large' write 12
        is 12 'wptr 0x000000.*zcond: 1(em)'
        # An implicitly open zone makes room for a closed one (V27): 8 and 9 explicitly, 10, 11, 4 and 5 implicitly, then 6.
        for z in 4 5; do write $z 1 1; done
        write 6 1 1
        is 6 'zcond: 2(oi)'; is 10 'zcond: 4(cl)'; is 8 'zcond: 3(oe)'
        "#,
    );
}

#[test]
fn a_write_beside_the_write_pointer_is_an_error_and_moves_nothing() {
    in_guest(
        &disk(),
        r#"
        write 4 2
        line 4 >/tmp/before
        refused 'Input/output error' write 4 1 5
        refused 'Input/output error' write 4 1 0
        refused 'Input/output error' write 40 1 1
        # Past the capacity.
        refused 'error' write 41 1 3072
        line 4 | cmp - /tmp/before
        is 40 'wptr 0x000000.*zcond: 1(em)'; is 41 'wptr 0x000000.*zcond: 1(em)'
        # The zone still takes what is at its write pointer.
        write 4 1 2
        is 4 'wptr 0x000018'
        # What was never written reads as zeros, in the zone and past its capacity.
        dd if=/dev/vda bs=4096 skip=$(($(zone 4) / 8 + 3)) count=4093 iflag=direct status=none | cmp -n 16764928 - /dev/zero
        "#,
    );
}

#[test]
fn fio_verifies_what_it_wrote_at_depth_1_and_at_depth_32() {
    // Twice over the zones, so that they are reset and written again.
    let fio = "fio --name=zbd --filename=/dev/vda --direct=1 --zonemode=zbd --max_open_zones=6 \
               --offset=64M --size=128M --bs=64k --verify=crc32c --do_verify=1 --verify_fatal=1 --output-format=terse --terse-version=3";
    let disk = disk();
    in_guest(
        &disk,
        &format!(
            "{fio} --rw=write --ioengine=psync --iodepth=1 --loops=2 >/dev/null
             {fio} --rw=write --ioengine=io_uring --iodepth=32 --loops=2 >/dev/null
             {fio} --rw=randwrite --ioengine=io_uring --iodepth=32 >/dev/null
             # The conventional zones are a regular disk.
             fio --name=conv --filename=/dev/vda --direct=1 --size=64M --bs=4k --rw=randwrite --ioengine=io_uring \
                 --iodepth=32 --verify=crc32c --io_size=16M >/dev/null"
        ),
    );
}

#[test]
fn a_disk_without_zones_is_a_regular_disk() {
    let disk =
        ServedDisk::serve(virtio_zbd_guest::DiskTarget::Ram(Geometry::regular("256M")), ["--queues", "2"])
            .or_fail("no disk");
    let seen = exec_in_guest(
        disk.socket(),
        r"
        set -eu
        cat /sys/block/vda/queue/zoned
        mkfs.ext4 -q /dev/vda
        mount -o discard /dev/vda /mnt
        cp -a /bin/busybox /mnt/a 2>/dev/null || cp -a /bin/ls /mnt/a
        sync; cmp /mnt/a $(command -v busybox || echo /bin/ls)
        rm /mnt/a; fstrim /mnt
        umount /mnt; e2fsck -fn /dev/vda >/dev/null 2>&1 && echo clean
        ",
    );
    assert_eq!(seen, "none\nclean\n");
}
