//! A zoned device of a host's, served by us, in a real guest: the host is a User-mode Linux with a null_blk, the guest a stock Linux in
//! QEMU on that host. The guest works on the disk as it does on an image, and then guest, `vzbd report` and the host's `blkzone report`
//! say the same. Once the disk has zones that the host has taken out of use, and the guest leaves zones in every condition there is.
//!
//! `ZBD_PASSED_THROUGH=all` tries each recipe of the guest's work (or the one that it names), and as much of it as on an image: some
//! minutes each. `ZBD_WORK_AMOUNT=10` makes that a tenth, `ZBD_WORK_SEED` repeats a run.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails this way, and says its seed"
)]

mod common;

use std::time::Duration;

use common::{OrFail, assert_same_zones, guest, qemu_guest, quoted, text};
use virtio_zbd_guest::work::{ALL, FIO, Place, Recipe};
use virtio_zbd_guest::{Status, cache, programs};

const VARIABLE: &str = "ZBD_PASSED_THROUGH";
const SEED_VARIABLE: &str = "ZBD_WORK_SEED";
const AMOUNT_VARIABLE: &str = "ZBD_WORK_AMOUNT";

/// An emulated processor in a User-mode Linux, on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(300);
const LONG_TIMEOUT: Duration = Duration::from_secs(3600);

/// How much of a recipe's usual work the normal run does, in percent.
const AMOUNT: u32 = 10;

const ZONES: usize = 64;

/// Zones that the host has made read-only and offline, one of each with something in it.
const READ_ONLY: &str = "58 59";
const OFFLINE: &str = "60 61";

/// What a file system can't be made on has worn zones: the recipe that works on the disk itself can.
fn is_worn(recipe: &Recipe) -> bool {
    recipe.name == FIO.name
}

/// In the host: makes a null_blk of 64 zones of 32 MiB, serves it, runs the guest (`"$@"`), and prints what we say of the zones, what
/// the host says, and what the host says when we are gone.
fn host_script(recipe: &Recipe) -> String {
    let vzbd = programs::vzbd().or_fail("no vzbd");
    let capacity = if recipe.needs.whole_capacity { 32 } else { 24 };
    let (read_only, offline) = if is_worn(recipe) { (READ_ONLY, OFFLINE) } else { ("", "") };
    format!(
        r#"set -eu
        vzbd={vzbd}
        null_blk=/sys/kernel/config/nullb/nullb0
        mkdir $null_blk
        for word in size=2048 memory_backed=1 zoned=1 zone_size=32 zone_capacity={capacity} zone_nr_conv=8 \
            zone_max_open=8 zone_max_active=10 power=1; do
            echo ${{word#*=}} >$null_blk/${{word%=*}}
        done
        for zone in 58 60; do
            [ -n "{read_only}" ] || continue
            dd if=/dev/urandom of=/dev/nullb0 bs=4096 seek=$((zone * 8192)) count=3 oflag=direct conv=notrunc status=none
        done
        for zone in {read_only}; do echo $((zone * 65536)) >$null_blk/zone_readonly; done
        for zone in {offline}; do echo $((zone * 65536)) >$null_blk/zone_offline; done
        $vzbd serve /dev/nullb0 --socket /tmp/disk.sock >/tmp/daemon 2>&1 &
        daemon=$!
        trap 'cat /tmp/daemon >&2' EXIT
        until [ -S /tmp/disk.sock ]; do kill -0 $daemon; sleep 0.1; done
        "$@"
        $vzbd report --format blkzone /tmp/disk.sock
        blkzone report /dev/nullb0
        kill $daemon; wait $daemon
        blkzone report /dev/nullb0"#,
        vzbd = quoted(vzbd.display()),
    )
}

/// In the guest, after the work: zones in every condition. Prints the guest's report.
const CONDITIONS: &str = r#"
    set -eu
    export LC_ALL=C
    disk=/dev/vda
    zone() { echo $(($1 * 65536)); }
    line() { blkzone report -o $(zone $1) -c 1 $disk; }
    is() { line $1 | grep -q "$2" || { echo "zone $1 is not $2: $(line $1)" >&2; exit 1; }; }
    refused() {
        if "$@" 2>/tmp/refusal; then echo "not refused: $*" >&2; exit 1; fi
        grep -q 'error' /tmp/refusal || { echo "$*: not an error but:" >&2; cat /tmp/refusal >&2; exit 1; }
    }
    write() { dd if=/dev/urandom of=$disk bs=4096 count=${2:-1} seek=$(($(zone $1) / 8)) oflag=direct conv=notrunc status=none; }
    manage() { blkzone $1 -o $(zone $2) -c 1 $disk; }
    blkzone reset -o $(zone 48) -c 10 $disk
    manage open 48;                            is 48 'wptr 0x000000.*zcond: 3(oe)'
    manage open 49; write 49 7;                is 49 'wptr 0x000038.*zcond: 3(oe)'
    write 50 5; manage close 50;               is 50 'wptr 0x000028.*zcond: 4(cl)'
    write 51 3; manage finish 51;              is 51 'zcond:14(fu)'
    manage finish 52;                          is 52 'zcond:14(fu)'
    manage open 53; manage close 53;           is 53 'wptr 0x000000.*zcond: 1(em)'
    write 54 9; manage reset 54;               is 54 'wptr 0x000000.*zcond: 1(em)'
    for z in 58 59; do is $z 'zcond:13(ro)'; refused write $z; refused manage reset $z; done
    for z in 60 61; do is $z 'zcond:15(of)'; refused write $z; refused manage open $z; done
    dd if=$disk of=/dev/null bs=4096 skip=$((58 * 8192)) count=3 iflag=direct status=none
    write 55 2;                                is 55 'wptr 0x000010.*zcond: 2(oi)'
    blkzone report $disk
"#;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// With `is_long` all of the usual work, and another round of it.
fn works_passed_through(recipe: &Recipe, is_long: bool) {
    let usual = number(AMOUNT_VARIABLE).map_or(100, |amount| u32::try_from(amount).unwrap());
    let (amount, limit) = if is_long { (usual, LONG_TIMEOUT) } else { (AMOUNT, TIMEOUT) };
    let seed = number(SEED_VARIABLE).unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("{SEED_VARIABLE}={seed} {}", recipe.name);
    let place = Place::new(seed, &mut |_| {}).or_fail("no tools").amount(amount);
    let rounds = [recipe.first(&place), recipe.again(&place, 1)];
    let rounds = &rounds[..if is_long { 2 } else { 1 }];
    let work: String = rounds.iter().map(|round| format!("sh -c {} >&2 || exit\n", quoted(round))).collect();
    let guest = qemu_guest().timeout(limit).disk("/tmp/disk.sock");
    let host = guest_with_memory();
    let guest = guest.inside(&host.timeout(limit), host_script(recipe));
    let _turn = cache::take_turn().or_fail("no turn");
    let end = if is_worn(recipe) { CONDITIONS } else { "blkzone report /dev/vda" };
    // dmzadm looks for it before it asks for it.
    let script = format!("modprobe dm-zoned\n{work}{end}");
    let output = guest.sh(script).or_fail("run the guest");
    let host = output.host.as_deref().unwrap();
    let says = || format!("{}\n--- the host's ---\n{}", text(&output.stderr), text(&host.stderr));
    assert_eq!((output.status, host.status), (Status::Exited(0), Status::Exited(0)), "{}", says());

    let guests_view = text(&output.stdout);
    let views = text(&host.stdout);
    let views: Vec<_> = views.lines().collect();
    assert_eq!(views.len(), 3 * ZONES, "{}", says());
    let [ours, hosts, afterwards] = [0, 1, 2].map(|view| views[view * ZONES..(view + 1) * ZONES].join("\n"));
    assert_same_zones(&guests_view, &ours);
    assert_same_zones(&ours, &hosts);
    // Every condition is there.
    for code in [" 0(nw)", " 1(em)", " 2(oi)", " 3(oe)", " 4(cl)", "13(ro)", "14(fu)", "15(of)"] {
        assert!(!is_worn(recipe) || hosts.contains(&format!("zcond:{code}")), "no {code}: {hosts}");
    }
    // Nothing that was written is gone with us.
    assert_same_zones(&closed(&hosts), &closed(&afterwards));
}

/// A report in which open zones are closed: whether they are when nobody serves them any more is not said.
fn closed(report: &str) -> String {
    let empty = |line: &str| line.contains("wptr 0x000000");
    let close = |line: &str| match line.contains("zcond: 2(oi)") || line.contains("zcond: 3(oe)") {
        true if empty(line) => line.replace("zcond: 3(oe)", "zcond: 1(em)"),
        true => line.replace("zcond: 2(oi)", "zcond: 4(cl)").replace("zcond: 3(oe)", "zcond: 4(cl)"),
        false => line.to_owned(),
    };
    report.lines().map(close).collect::<Vec<_>>().join("\n")
}

/// For the guest's memory, and for what is on the disk.
fn guest_with_memory() -> virtio_zbd_guest::Guest {
    guest().memory_mib(4096)
}

#[test]
fn fio_and_every_condition() {
    works_passed_through(&FIO, false);
}

#[test]
fn all_work_of_a_guest() {
    let wanted = std::env::var(VARIABLE).unwrap_or_default();
    let recipes: Vec<_> = ALL.iter().filter(|recipe| wanted == "all" || wanted == recipe.name).collect();
    println!(
        "only with {VARIABLE}=all or the name of one of {:?}",
        ALL.iter().map(|recipe| recipe.name).collect::<Vec<_>>()
    );
    for recipe in recipes {
        works_passed_through(recipe, true);
    }
}
