//! A disk that grows under a running Linux: what stock drivers make of it (docs/resize.md has the outcomes in words).
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails this way")]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{OrFail, guest, qemu_guest, succeed};
use virtio_zbd_guest::tools::ZonedTools;
use virtio_zbd_guest::{DiskTarget, Geometry, Guest, ServedDisk, programs};

/// Runs `script` in `guest` on a disk of 64 zones of 16 MiB; where it says `grow`, the disk becomes twice as long. Returns what it wrote.
fn grow_under(guest: Guest, script: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("control");
    let geometry = Geometry::new("1G", "16M").conventional(4).max_open(6).max_active(8);
    let disk = ServedDisk::serve(
        DiskTarget::Temporary(geometry),
        ["--control".into(), control.clone().into_os_string()],
    )
    .or_fail("no disk");
    let (place, done) = (dir.path().to_owned(), AtomicBool::new(false));
    let words = format!(
        r#"
        set -eu
        export LC_ALL=C
        here={}
        size() {{ cat /sys/block/vda/size; }}
        count() {{ blkzone report /dev/vda | wc -l; }}
        grow() {{
            touch $here/please
            until [ -e $here/grown ]; do sleep 0.05; done
            for n in $(seq 100); do [ "$(size)" != 2097152 ] && break; sleep 0.05; done
        }}
        {script}
        "#,
        place.display()
    );
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !place.join("please").exists() {
                if done.load(Ordering::SeqCst) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let vzbd = programs::vzbd().or_fail("no vzbd");
            let grown =
                Command::new(vzbd).arg("resize").arg(&control).args(["--size", "2G"]).output().unwrap();
            assert!(grown.status.success(), "{}", String::from_utf8_lossy(&grown.stderr));
            std::fs::write(place.join("grown"), "").unwrap();
        });
        let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            succeed(&guest.disk(disk.socket()).share(Path::new(&place)), &words)
        }));
        done.store(true, Ordering::SeqCst);
        said.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What is seen before the growth, after it, and after the driver has been bound again.
const LOOK: &str = r#"
    look() { echo "$1: $(size) sectors, $(cat /sys/block/vda/queue/nr_zones) zones, $(count) reported"; }
    write() { dd if=/dev/urandom of=/dev/vda bs=4096 count=$3 seek=$(($1 * 4096 + $2)) oflag=direct conv=notrunc status=none; }
    line() { blkzone report -o $(($1 * 32768)) -c 1 /dev/vda | sed 's/.*cap \(.*\), wptr \([^ ]*\).*zcond: *\([0-9]*\).*/cap \1 wptr \2 condition \3/'; }
    look before
    write 10 0 3
    grow
    look after
    write 10 3 1
    line 10
    write 100 0 2
    line 100
    blkzone finish -o $((101 * 32768)) -c 1 /dev/vda 2>/dev/null || echo "finish refused"
    blkzone reset -o $((100 * 32768)) -c 1 /dev/vda 2>/dev/null || echo "reset refused"
    line 100
    dmesg | grep -o 'vda: detected capacity change.*'
    device=$(basename $(readlink -f /sys/block/vda/device))
    echo $device > /sys/bus/virtio/drivers/virtio_blk/unbind
    echo $device > /sys/bus/virtio/drivers/virtio_blk/bind
    look again
    line 10
    line 101
"#;

const SEEN: [&str; 9] = [
    "before: 2097152 sectors, 64 zones, 64 reported",
    // B3: the kernel has taken the size and asks the device for a report, but keeps what it knew of the zones.
    "after: 4194304 sectors, 64 zones, 128 reported",
    "cap 0x008000 wptr 0x000020 condition 2",
    "cap 0x008000 wptr 0x000010 condition 2",
    "cap 0x008000 wptr 0x000000 condition 1",
    "vda: detected capacity change from 2097152 to 4194304",
    "again: 4194304 sectors, 128 zones, 128 reported",
    "cap 0x008000 wptr 0x000020 condition 2",
    "cap 0x008000 wptr 0x008000 condition 14",
];

#[test]
fn linux_6_12_takes_the_size_and_not_the_zones() {
    let seen = grow_under(guest(), LOOK);
    assert_eq!(seen.lines().collect::<Vec<_>>(), SEEN);
}

/// Debian's newer kernel on QEMU's PCI, over vhost-user: up to a minute without hardware virtualization, so only on demand (`--ignored`).
/// It lets new zones be written and reported; that they are managed it refuses by itself until the driver is bound again.
#[test]
#[ignore = "up to a minute; run it by its name with --ignored"]
fn a_newer_kernel_in_qemu_refuses_to_manage_new_zones() {
    let seen = grow_under(qemu_guest(), LOOK);
    let mut expected = SEEN.to_vec();
    expected.splice(4..5, ["finish refused", "reset refused", "cap 0x008000 wptr 0x000010 condition 2"]);
    *expected.last_mut().unwrap() = "cap 0x008000 wptr 0x000000 condition 1";
    assert_eq!(seen.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn zonefs_has_the_new_zones_once_the_driver_is_bound_again() {
    let tools = ZonedTools::ensure(&mut |_| {}).or_fail("no mkzonefs");
    let dir = tools.dir().map_or_else(String::new, |dir| format!("{}:", dir.display()));
    let script = format!("PATH={dir}$PATH\n{ZONEFS}");
    let seen = grow_under(guest(), &script);
    // Four conventional zones; the first of all is zonefs' own.
    let expected = ["before: 3 and 60", "after: 3 and 60", "bound again: 3 and 124", "the same data"];
    assert_eq!(seen.lines().collect::<Vec<_>>(), expected);
}

const ZONEFS: &str = r#"
    look() { echo "$1: $(ls /tmp/m/cnv | wc -l) and $(ls /tmp/m/seq | wc -l)"; }
    bound() { echo $1 > /sys/bus/virtio/drivers/virtio_blk/$2; }
    mkzonefs -f /dev/vda >/dev/null
    mkdir -p /tmp/m
    mount -t zonefs /dev/vda /tmp/m
    look before
    dd if=/dev/urandom of=/tmp/data bs=4096 count=8 status=none
    dd if=/tmp/data of=/tmp/m/seq/7 bs=4096 count=4 oflag=direct,append conv=notrunc status=none
    grow
    look after
    dd if=/tmp/data of=/tmp/m/seq/7 bs=4096 count=4 skip=4 oflag=direct,append conv=notrunc status=none
    umount /tmp/m
    # No mount now: zonefs' table is as long as the kernel's old number of zones, and takes the report of all of them.
    device=$(basename $(readlink -f /sys/block/vda/device))
    bound $device unbind
    bound $device bind
    mount -t zonefs /dev/vda /tmp/m
    look 'bound again'
    dd if=/tmp/data of=/tmp/m/seq/123 bs=4096 count=8 oflag=direct,append conv=notrunc status=none
    cmp -n 32768 /tmp/m/seq/123 /tmp/data
    cmp -n 32768 /tmp/m/seq/7 /tmp/data && echo 'the same data'
    umount /tmp/m
"#;
