//! File systems for zoned disks, over a restart of the daemon: the tree that comes out is the tree that went in.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails this way, and says its seed")]

mod common;

use std::fs;
use std::path::Path;

use common::{OrFail, exec_in_guest, quoted};
use virtio_zbd_guest::{Geometry, ServedDisk};

const DIRS: usize = 60;
const FILES_IN_DIR: usize = 50;
const FILE_BYTES_MAX: usize = 24 << 10;

#[test]
fn btrfs_keeps_a_tree_over_a_restart() {
    keeps_a_tree("mkfs.btrfs -q", "btrfs check -p");
}

#[test]
fn f2fs_keeps_a_tree_over_a_restart() {
    // Not fsck.f2fs: that of f2fs-tools 1.15 miscounts free segments where the capacity is below the zone's size, on null_blk
    // as well.
    keeps_a_tree("mkfs.f2fs -q -m", "dump.f2fs");
}

fn keeps_a_tree(mkfs: &str, fsck: &str) {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    let tree = quoted(dir.path().display());
    let geometry = Geometry::new("4G", "64M").zone_capacity("48M").conventional(4).max_open(6).max_active(8);
    let mut disk = ServedDisk::create(&geometry).or_fail("a disk");

    let script =
        format!("set -e; {mkfs} /dev/vda >&2; mount /dev/vda /mnt; cp -a {tree} /mnt/tree; umount /mnt");
    exec_in_guest(disk.socket(), &script);
    disk.restart().or_fail("restart");

    let script = format!(
        "set -e; {fsck} /dev/vda >&2; mount /dev/vda /mnt; diff -r {tree} /mnt/tree
         find /mnt/tree -type f | wc -l; rm -r /mnt/tree/dir-1*; cp -a {tree}/dir-1* /mnt/tree; sync; diff -r {tree} /mnt/tree
         umount /mnt",
    );
    assert_eq!(exec_in_guest(disk.socket(), &script), format!("{}\n", DIRS * FILES_IN_DIR));
    disk.stop().or_fail("stop");
}

fn make_tree(root: &Path) {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for dir in 0..DIRS {
        let dir = root.join(format!("dir-{dir}"));
        fs::create_dir(&dir).unwrap();
        for file in 0..FILES_IN_DIR {
            let mut bytes = vec![0; random.usize(..=FILE_BYTES_MAX)];
            random.fill(&mut bytes);
            fs::write(dir.join(format!("file-{file}")), bytes).unwrap();
        }
    }
}
