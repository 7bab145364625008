//! Real file systems on our zoned disk: made, filled, unmounted; the daemon stopped and started; mounted and compared.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails this way, and says its seed"
)]

mod common;

use std::fmt::Write;
use std::path::Path;

use common::{OrFail, guest, succeed};
use virtio_zbd_guest::{Geometry, ServedDisk};

const FILES: usize = 3000;

/// Makes a tree of files with random contents, some empty, some larger than a zone append; and a list of every file's check sum.
fn make_tree(share: &Path) {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for file in 0..FILES {
        let dir = share.join(format!("tree/{}/{}", file % 7, file % 53));
        std::fs::create_dir_all(&dir).unwrap();
        let len = match file % 100 {
            0 => 0,
            1 => random.usize(600 << 10..2 << 20),
            _ => random.usize(0..24 << 10),
        };
        let mut bytes = vec![0; len];
        random.fill(&mut bytes);
        let mut name = String::new();
        write!(name, "file {file}").unwrap();
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

/// Makes a file system, copies the tree to it; then, after a restart of the daemon and in a new guest, compares.
fn the_same_tree_after_a_restart(geometry: &Geometry, mkfs: &str, check: &str) {
    let share = tempfile::tempdir().unwrap();
    make_tree(share.path());
    let tree = share.path().join("tree");
    let tree = tree.display();
    let mut disk = ServedDisk::create(geometry).or_fail("no disk");

    let with_disk = |disk: &ServedDisk| guest().disk(disk.socket()).share(share.path());
    succeed(
        &with_disk(&disk),
        &format!(
            "set -eu
             {mkfs}
             mount /dev/vda /mnt
             cp -a {tree} /mnt/
             # Some of it twice, and some of it gone again: zones to be cleaned.
             cp -a {tree} /mnt/twice; rm -rf /mnt/twice
             umount /mnt"
        ),
    );
    disk.stop().or_fail("stop");
    disk.restart().or_fail("restart");
    let files = succeed(
        &with_disk(&disk),
        &format!(
            "set -eu
             {check}
             mount /dev/vda /mnt
             diff -r {tree} /mnt/tree
             [ ! -e /mnt/twice ]
             find /mnt/tree -type f | wc -l
             umount /mnt"
        ),
    );
    assert_eq!(files.trim(), FILES.to_string());
    disk.stop().or_fail("stop");
}

fn with_conventional_zones() -> Geometry {
    Geometry::new("2G", "32M").zone_capacity("24M").conventional(16).max_open(6).max_active(8)
}

const MKFS_BTRFS: &str = "mkfs.btrfs -q -O zoned -d single -m single /dev/vda";
const CHECK_BTRFS: &str = "btrfs check --readonly --check-data-csum /dev/vda >/dev/null 2>&1";

#[test]
fn btrfs_has_the_same_tree_after_a_restart() {
    the_same_tree_after_a_restart(&with_conventional_zones(), MKFS_BTRFS, CHECK_BTRFS);
}

/// Into conventional zones btrfs writes; into sequential ones it appends, and believes where the disk says that the data is.
#[test]
fn btrfs_has_the_same_tree_in_sequential_zones_alone() {
    let sequential = Geometry::new("4G", "64M").zone_capacity("48M").max_open(6).max_active(8);
    the_same_tree_after_a_restart(&sequential, MKFS_BTRFS, CHECK_BTRFS);
}

#[test]
fn f2fs_has_the_same_tree_after_a_restart() {
    // Debian 12's fsck.f2fs does not know zones whose capacity is less than their length: it counts segments as free that the
    // kernel rightly does not, says so, and ends with status 4. All else that it checks must be right.
    the_same_tree_after_a_restart(
        &with_conventional_zones(),
        "mkfs.f2fs -q -m /dev/vda",
        r#"fsck.f2fs --dry-run /dev/vda >/tmp/fsck || [ $? = 4 ]
           grep -q 'Write pointers consistency.*Ok' /tmp/fsck
           if grep -v 'free segment_count' /tmp/fsck | grep Fail >&2; then exit 1; fi"#,
    );
}
