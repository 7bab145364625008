//! What a Linux guest makes of each fault of the medium: the errno that its program gets, what becomes of the zone, and that the rest of
//! the disk goes on. (virtio_blk has EIO for IOERR and for ZONE_INVALID_CMD alike.)
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod common;

use std::fs::File;

use common::{OrFail, exec_in_guest};
use virtio_zbd_guest::{DiskTarget, Geometry, ServedDisk};

/// 64 zones of 16 MiB, 12 MiB writable, 4 conventional; with these faults.
fn disk(rules: &[&str]) -> ServedDisk {
    let geometry = Geometry::new("1G", "16M").zone_capacity("12M").conventional(4).max_open(6).max_active(8);
    let options: Vec<&str> = rules.iter().flat_map(|rule| ["--inject", *rule]).collect();
    ServedDisk::serve(DiskTarget::Temporary(geometry), options).or_fail("no disk")
}

/// Shell words: blocks of 4 KiB in zones by number, with O_DIRECT; a call that must end in EIO; a zone's line in the report.
const WORDS: &str = r#"
    set -eu
    export LC_ALL=C
    zone() { echo $(($1 * 32768)); }
    is() {
        blkzone report -o $(zone $1) -c 1 /dev/vda | grep -q "$2" && return
        echo "zone $1 is not $2:" >&2; blkzone report -o $(zone $1) -c 1 /dev/vda >&2; exit 1
    }
    # ZONE BLOCK COUNT [conv=fsync]
    write() { dd if=/dev/urandom of=/dev/vda bs=4096 count=$3 seek=$(($(zone $1) / 8 + $2)) oflag=direct conv=notrunc ${4:-} status=none; }
    read() { dd if=/dev/vda bs=4096 count=$3 skip=$(($(zone $1) / 8 + $2)) iflag=direct status=none; }
    eio() {
        if "$@" >/dev/null 2>/tmp/refusal; then echo "no error: $*" >&2; exit 1; fi
        grep -q 'Input/output error' /tmp/refusal || { echo "$*: not EIO but:" >&2; cat /tmp/refusal >&2; exit 1; }
    }
    reset() { blkzone reset -o $(zone $1) -c 1 /dev/vda; }
    finish() { blkzone finish -o $(zone $1) -c 1 /dev/vda; }
"#;

fn in_guest(disk: &ServedDisk, script: &str) -> String {
    exec_in_guest(disk.socket(), &format!("{WORDS}{script}"))
}

#[test]
fn eio_for_a_bad_medium_and_the_zone_is_out_of_use_for_good() {
    // Zone 10 can't be written after its first block, zone 11 tears its first write, zone 12 can't be read, zone 13 has one bad sector, zone
    // 14 can't be emptied; the conventional zones 0 and 1 can't be written or read.
    let mut disk = disk(&[
        "write:eio@zone=10,after=1",
        "write:torn@zone=11",
        "read:eio@zone=12",
        "read:eio@lba=425992",
        "reset:eio@zone=14",
        "write:eio@zone=0",
        "read:eio@zone=1",
    ]);
    let gone = r#"
        is 10 'zcond:13(ro)'; is 11 'zcond:13(ro)'; is 12 'zcond:15(of)'; is 14 'zcond:15(of)'
        for z in 10 11 12 14; do eio write $z 1 1; eio reset $z; eio finish $z; done
        for z in 12 14; do eio read $z 0 1; done
        read 10 0 1 | cmp -n 4096 - /dev/zero >/dev/null && { echo 'zone 10 has lost its data' >&2; exit 1; }
        read 11 0 4 | cmp -n 16384 - /dev/zero
    "#;
    in_guest(
        &disk,
        &format!(
            r#"
            write 10 0 1; eio write 10 1 1
            eio write 11 0 4
            write 12 0 4; eio read 12 0 1
            write 14 0 4; eio reset 14
            {gone}
            # One bad sector costs no zone.
            write 13 0 4; eio read 13 1 1; read 13 0 1 >/dev/null; read 13 2 2 >/dev/null; is 13 'wptr 0x000020.*zcond: 2(oi)'
            # Nor does anything cost a conventional one.
            eio write 0 0 1; read 0 0 1 >/dev/null; write 1 0 1; eio read 1 0 1; is 0 'zcond: 0(nw)'; is 1 'zcond: 0(nw)'
            # The rest goes on.
            write 20 0 8; finish 20; reset 20; write 20 0 8 conv=fsync
            blkzone reset /dev/vda
            is 13 'zcond: 1(em)'; is 20 'zcond: 1(em)'
            "#
        ),
    );
    disk.kill();
    disk.restart().or_fail("restart after a kill");
    in_guest(&disk, gone);
    disk.stop().or_fail("stop");
    disk.restart().or_fail("restart");
    in_guest(&disk, gone);
}

#[test]
fn eio_for_a_full_host_and_nothing_is_lost() {
    in_guest(
        &disk(&[
            "write:enospc@zone=10,after=1,times=1",
            "write:edquot@zone=11,times=1",
            "write:efbig@zone=12,times=1",
            "reset:enospc@zone=13,times=2",
        ]),
        r#"
        write 10 0 1; eio write 10 1 1; is 10 'wptr 0x000008.*zcond: 2(oi)'
        write 10 1 1; is 10 'wptr 0x000010.*zcond: 2(oi)'
        for z in 11 12; do eio write $z 0 1; is $z 'wptr 0x000000.*zcond: 1(em)'; write $z 0 1; done
        write 13 0 16; eio reset 13
        # Empty, and to be reset again before it takes anything.
        is 13 'wptr 0x000000.*zcond: 1(em)'; read 13 0 16 | cmp -n 65536 - /dev/zero
        eio write 13 0 1; eio reset 13; reset 13; write 13 0 1; is 13 'wptr 0x000008.*zcond: 2(oi)'
        "#,
    );
}

#[test]
fn eio_for_every_fsync_after_one_that_failed() {
    let mut disk = disk(&["flush:eio@after=1,times=1"]);
    in_guest(
        &disk,
        r#"
        write 10 0 1 conv=fsync
        write 10 1 1; eio sync /dev/vda; eio sync /dev/vda
        eio write 10 2 1 conv=fsync
        eio finish 10; eio reset 10
        # What is there can be read, and written, but nobody is told that it is safe.
        read 10 0 3 >/dev/null; write 11 0 1
        "#,
    );
    disk.kill();
    disk.restart().or_fail("restart");
    // Back to what the last good flush has seen.
    in_guest(
        &disk,
        "is 10 'wptr 0x000008.*zcond: 4(cl)'; is 11 'wptr 0x000000.*zcond: 1(em)'; read 10 0 1 >/dev/null; sync /dev/vda",
    );
}

#[test]
fn no_error_for_short_transfers() {
    in_guest(
        &disk(&["write:short", "read:short"]),
        r#"
        dd if=/dev/urandom of=/tmp/data bs=4096 count=64 status=none
        dd if=/tmp/data of=/dev/vda bs=65536 seek=$(($(zone 10) / 128)) oflag=direct conv=notrunc status=none
        read 10 0 64 | cmp - /tmp/data; is 10 'wptr 0x000200'
        "#,
    );
}

#[test]
fn eio_behind_the_end_of_a_file_that_was_cut_off() {
    let disk = disk(&[]);
    in_guest(&disk, "for z in 10 20 21; do write $z 0 16; done; sync /dev/vda");
    let image = File::options().write(true).open(disk.image_path().unwrap()).unwrap();
    let whole = image.metadata().unwrap().len();
    // In the middle of zone 20: 44 zones of 16 MiB are behind its start.
    let cut = whole - 44 * (16 << 20) + 32768;
    image.set_len(cut).unwrap();
    in_guest(
        &disk,
        r#"
        read 20 0 8 >/dev/null; eio read 20 8 1; is 20 'wptr 0x000080'
        eio sync /dev/vda
        eio read 21 0 1; is 21 'zcond:15(of)'
        eio write 22 0 1; is 22 'zcond:13(ro)'
        read 10 0 16 >/dev/null; write 10 16 1; is 10 'wptr 0x000088'
        "#,
    );
    assert_eq!(image.metadata().unwrap().len(), cut, "it was made longer");
}
