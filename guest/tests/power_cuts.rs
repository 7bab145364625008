//! Real file systems after power cuts: files are written and synced one after the other on a disk that is recorded; then the image
//! of many moments is mounted, compared and checked.
//!
//! Some seconds for each image, so only when asked for: `cargo test -p virtio-zbd-guest --test power_cuts -- --ignored`.
//! `ZBD_CUTS=100` sets how many images, `SEED` repeats a run.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails this way, and says its seed"
)]

mod common;

use std::path::Path;
use std::process::Command;

use common::{OrFail, guest, run, succeed, text};
use virtio_zbd_guest::{DiskTarget, Geometry, ServedDisk, programs};

const FILES: u32 = 40;

/// The next file is begun when the last one is synced. So where a file is, all before it must be whole.
fn every_cut_leaves_a_good_file_system(mkfs: &str, check: &str) {
    let seed = std::env::var("SEED").ok().and_then(|n| n.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    let cuts: u32 = std::env::var("ZBD_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    println!("SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let place = tempfile::tempdir().unwrap();
    let share = place.path().display();
    for file in 1..=FILES {
        let mut bytes = vec![0; random.usize(1..600 << 10)];
        random.fill(&mut bytes);
        std::fs::write(place.path().join(file.to_string()), bytes).unwrap();
    }
    let (image, log) = (place.path().join("disk.zbd"), place.path().join("log"));
    let geometry = Geometry::new("2G", "32M").conventional(16).max_open(8).max_active(10);
    geometry.create_image(&image).or_fail("no image");
    let mut disk = ServedDisk::image(&image).or_fail("no disk");
    succeed(&guest().disk(disk.socket()), mkfs);
    disk.stop().or_fail("stop");
    let record = ["--record".as_ref(), log.as_os_str()];
    let mut disk = ServedDisk::serve(DiskTarget::Image(image), record).or_fail("no disk");
    succeed(
        &guest().disk(disk.socket()).share(place.path()),
        &format!(
            "set -eu
             mount /dev/vda /mnt
             for i in $(seq {FILES}); do
                 cp {share}/$i /mnt/$i
                 # By turns the file alone, and the whole file system; and now and then something goes.
                 if [ $((i % 3)) = 0 ]; then sync -f /mnt/$i; else sync /mnt/$i; fi
                 if [ $((i % 4)) = 0 ]; then cp {share}/$i /mnt/passing; fi
                 if [ $((i % 4)) = 2 ]; then rm -f /mnt/passing; fi
             done"
        ),
    );
    disk.stop().or_fail("stop");

    let images = place.path().join("images");
    std::fs::create_dir(&images).unwrap();
    let keep = format!("cp --sparse=always $VZBD_IMAGE {}/$VZBD_EVENT-$VZBD_SEED", images.display());
    let replayed = Command::new(programs::vzbd().or_fail("no vzbd"))
        .args(["replay".as_ref(), log.as_os_str()])
        .args(["--seed", &seed.to_string(), "--count", &cuts.to_string(), "--exec", &keep])
        .output()
        .unwrap();
    assert!(replayed.status.success(), "{}", text(&replayed.stderr));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&images).unwrap() {
        found.push(look(&entry.unwrap().path(), place.path(), check));
    }
    found.sort_unstable();
    println!("{} images; the last file in each: {found:?}", found.len());
    assert_eq!(found.len(), usize::try_from(cuts).unwrap());
}

/// Mounts, compares and checks one image. Returns the last file that is there.
fn look(image: &Path, share: &Path, check: &str) -> u32 {
    let mut disk = ServedDisk::image(image).or_fail("no disk");
    let source = share.display();
    let script = format!(
        "set -eu
         mount /dev/vda /mnt
         last=0
         for i in $(seq {FILES}); do if [ -e /mnt/$i ]; then last=$i; fi; done
         for i in $(seq $((last - 1))); do cmp {source}/$i /mnt/$i; done
         find /mnt -type f -exec cat {{}} + >/dev/null
         umount /mnt
         {check}
         echo $last"
    );
    let output = run(&guest().disk(disk.socket()).share(share), &script).or_fail("no guest");
    assert!(
        output.status.success(),
        "{}: {}{}\n{}",
        image.display(),
        text(&output.stdout),
        text(&output.stderr),
        output.kernel_log
    );
    disk.stop().or_fail("stop");
    text(&output.stdout).trim().lines().last().unwrap().parse().unwrap()
}

#[test]
#[ignore = "long: a guest for each image"]
fn btrfs_survives_every_power_cut() {
    every_cut_leaves_a_good_file_system(
        "mkfs.btrfs -q -O zoned -d single -m single /dev/vda",
        "btrfs check --readonly --check-data-csum /dev/vda >/tmp/check 2>&1 || { cat /tmp/check >&2; exit 1; }",
    );
}

#[test]
#[ignore = "long: a guest for each image"]
fn f2fs_survives_every_power_cut() {
    every_cut_leaves_a_good_file_system(
        "mkfs.f2fs -q -m /dev/vda",
        "fsck.f2fs --dry-run /dev/vda >/tmp/check || { cat /tmp/check >&2; exit 1; }",
    );
}
