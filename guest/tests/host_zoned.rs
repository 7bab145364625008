//! A zoned device of the host served as a disk: here the host is a Linux guest that has such devices, `vzbd` runs in it, and so does its client. After
//! whatever was done through the socket, the device itself must say the same of its zones as the served disk.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails this way")]

mod common;

use common::{OrFail, guest, quoted, succeed};
use virtio_zbd_guest::{Guest, programs};

/// Shell words: devices, servers on them, and what zones are.
const WORDS: &str = r#"
    export LC_ALL=C RUST_LOG=info
    S=/tmp/disk.sock
    head -c 8192 /dev/urandom >/tmp/8k
    # NAME ATTRIBUTE=VALUE...: memory that is a zoned device; zones of 4 MiB
    null_blk() {
        [ -d /sys/kernel/config/nullb ] || mount -t configfs none /sys/kernel/config
        CONFIG=/sys/kernel/config/nullb/$1; shift
        mkdir $CONFIG
        for attribute in zoned=1 zone_size=4 memory_backed=1 "$@"; do
            echo ${attribute#*=} >$CONFIG/${attribute%%=*}
        done
        echo 1 >$CONFIG/power
    }
    zone() { echo $(($1 * 8192)); }
    # DEVICE OPTION...
    serve() {
        DEVICE=$1; shift
        $VZBD serve $DEVICE --socket $S "$@" >/tmp/said 2>/tmp/log &
        SERVER=$!
        for turn in $(seq 200); do grep -q SIGTERM /tmp/said && return; sleep 0.05; done
        cat /tmp/log >&2; exit 1
    }
    end() { kill $SERVER; wait $SERVER || { cat /tmp/log >&2; exit 1; }; }
    killed() { kill -9 $SERVER; wait $SERVER || true; }
    # As the kernel and as the disk has the zones. What stands for the write pointer of a zone without a valid one is nobody's business.
    same() {
        $VZBD report $S --format blkzone | sed 's/wptr 0x[0-9a-f]*\(.*zcond:1[345]\)/wptr -\1/' >/tmp/disk
        blkzone report $DEVICE | sed 's/wptr 0x[0-9a-f]*\(.*zcond:1[345]\)/wptr -\1/' >/tmp/device
        diff /tmp/disk /tmp/device || { cat /tmp/log >&2; exit 1; }
        [ "$(wc -l </tmp/disk)" -gt 10 ]
    }
    # ZONE CONDITION [SECTORS WRITTEN], as the disk says and as the device does
    is() {
        same
        set -- "$@" -
        $VZBD report $S | tr -s ' ' | grep -q "^ $1 .* $2 " || { echo "zone $1 is not $2" >&2; cat /tmp/disk >&2; exit 1; }
        [ "$3" = - ] || grep "start: 0x$(printf %09x $(zone $1))," /tmp/device | grep -q "wptr 0x$(printf %06x $3) "
    }
    # WORDS COMMAND...: it fails, and says so
    fails() {
        expected=$1; shift
        if "$@" >/tmp/out 2>&1; then echo "succeeded: $*" >&2; exit 1; fi
        grep -q -- "$expected" /tmp/out || { echo "$*: said, not '$expected':" >&2; cat /tmp/out >&2; exit 1; }
    }
    append() { $VZBD append $S $1 </tmp/8k; }
    set -e
"#;

/// The longest run of random requests is that of `ZBD_HOST_STEPS`.
fn steps() -> String {
    std::env::var("ZBD_HOST_STEPS").unwrap_or_else(|_| "600".into())
}

fn run(guest: &Guest, script: &str) -> String {
    let vzbd = programs::vzbd().or_fail("no vzbd");
    let checklist = programs::checklist().or_fail("no checklist");
    let names = format!("VZBD={}\nCHECKLIST={}\n", quoted(vzbd.display()), quoted(checklist.display()));
    succeed(guest, &format!("{names}{WORDS}{script}"))
}

fn passed(output: &str) {
    assert!(output.contains("random requests, 0 failed") && !output.contains("FAILED"), "{output}");
}

#[test]
fn null_blk_is_served_as_it_is() {
    let script = format!(
        r#"
        null_blk nullb0 size=96 zone_capacity=3 zone_nr_conv=3 zone_max_open=3 zone_max_active=5 blocksize=4096
        # Not otherwise than as it is, and by one alone.
        fails 'host-managed zoned device' $VZBD serve /dev/nullb0 --zoned none --socket $S
        fails 'host-managed zoned device' $VZBD report /dev/nullb0 --zoned none
        fails 'do not go with a zoned device' $VZBD serve /dev/nullb0 --socket $S --record /tmp/record
        fails 'do not go with a zoned device' $VZBD serve /dev/nullb0 --socket $S --power-cut-after 5
        fails 'block device' $VZBD check /dev/nullb0
        fails 'zoned none' $VZBD serve /dev/loop0 --socket $S
        # What was open before is closed.
        blkzone open -o $(zone 5) -c 1 /dev/nullb0
        dd if=/tmp/8k of=/dev/nullb0 bs=4096 seek=$(($(zone 6) / 8)) oflag=direct status=none
        $VZBD report /dev/nullb0 | grep -q '^ *6 .*implicit-open'
        serve /dev/nullb0 --queues 4
        grep -q '96M, host-managed, 24 zones of 4M' /tmp/said
        is 5 empty; is 6 closed 16
        fails 'in use' $VZBD serve /dev/nullb0 --socket /tmp/other.sock
        fails 'in use' $VZBD reset /dev/nullb0 6
        # Room is made where the disk makes it (V27).
        append 7; append 8; append 9; append 10
        is 7 closed 16; is 8 implicit-open 16; is 9 implicit-open 16; is 10 implicit-open 16
        $VZBD open $S 9; $VZBD open $S 7; is 8 closed 16; is 10 implicit-open; is 7 explicit-open
        $VZBD reset $S --all
        $CHECKLIST $S {steps}
        same
        end
        # The other way to do I/O, ended as by a crash: what is open then is closed afterwards.
        serve /dev/nullb0 --queues 4 --io sync
        $CHECKLIST $S 100
        $VZBD reset $S --all; append 11; $VZBD open $S 12; is 11 implicit-open; is 12 explicit-open
        killed
        serve /dev/nullb0
        is 11 closed 16; is 12 empty
        $VZBD read $S --zone 11 --output /tmp/back; cmp /tmp/8k /tmp/back
        end
        "#,
        steps = steps()
    );
    passed(&run(&guest(), &script));
}

#[test]
fn what_the_device_takes_away_is_gone_and_what_fails_is_asked_for() {
    run(
        &guest(),
        r#"
        null_blk nullb0 size=96 zone_capacity=3 zone_nr_conv=3 zone_max_open=4 zone_max_active=8 blocksize=4096
        read_only() { zone $1 >$CONFIG/zone_readonly; }
        offline() { zone $1 >$CONFIG/zone_offline; }
        now='not possible for this zone now'
        # Before it is served.
        read_only 4; offline 5
        serve /dev/nullb0 --queues 2
        is 4 read-only; is 5 offline
        fails "$now" append 4; fails "$now" append 5
        # While it is: who meets it first has an I/O error.
        for zone in 6 7 8 9 10 11; do append $zone; done
        read_only 6; fails 'I/O error' append 6; is 6 read-only; fails "$now" append 6
        offline 7; fails 'I/O error' append 7; is 7 offline; fails "$now" append 7
        offline 8; fails 'I/O error' $VZBD reset $S 8; is 8 offline; fails "$now" $VZBD reset $S 8
        read_only 9; fails 'I/O error' $VZBD finish $S 9; is 9 read-only; fails "$now" $VZBD finish $S 9
        offline 10; fails 'I/O error' $VZBD read $S --zone 10; is 10 offline; fails "$now" $VZBD read $S --zone 10 --length 4K
        offline 12; fails 'I/O error' $VZBD open $S 12; is 12 offline
        # The rest of the disk has its resources back.
        $VZBD reset $S --all; same
        for zone in 13 14 15 16; do $VZBD open $S $zone; done
        fails 'max\|open' $VZBD open $S 17
        same; $VZBD reset $S --all
        # In the midst of many.
        ( sleep 0.3; read_only 20 ) &
        fails 'I/O error\|not possible' $VZBD bench $S --mode append --queues 2 --depth 16 --seconds 30 --destroy-data
        is 20 read-only
        $VZBD reset $S --all; same
        end

        # Faults on purpose: a write that is torn moves the device's write pointer, one that never came does not.
        serve /dev/nullb0 --inject write:torn@zone=21,times=1 --inject write:eio@zone=22,times=1 \
            --inject reset:eio@zone=23,times=1 --inject read:eio@zone=21,times=1
        fails 'I/O error' append 21; is 21 implicit-open 8; append 21; is 21 implicit-open 24
        fails 'I/O error' append 22; is 22 empty; append 22; is 22 implicit-open 16
        append 23; fails 'I/O error' $VZBD reset $S 23; is 23 implicit-open 16; $VZBD reset $S 23; is 23 empty
        fails 'I/O error' $VZBD read $S --zone 21; is 21 implicit-open 24
        $VZBD read $S --zone 21 --output /tmp/back
        head -c 4096 /tmp/8k | cat - /tmp/8k | cmp - /tmp/back
        end
        "#,
    );
}

#[test]
fn a_drive_that_speaks_zbc() {
    let drive = [
        "add_host=1",
        "zbc=host-managed",
        "dev_size_mb=64",
        "zone_size_mb=4",
        "zone_nr_conv=2",
        "zone_max_open=4",
        "sector_size=4096",
        "delay=0",
        // In blocks: the 256th of zone 3.
        "medium_error_start=3328",
        "medium_error_count=1",
    ];
    let guest = drive.iter().fold(guest(), |guest, word| guest.kernel_arg(format!("scsi_debug.{word}")));
    let script = format!(
        r#"
        serve /dev/sda --queues 4
        grep -q '64M, host-managed, 16 zones of 4M' /tmp/said
        $CHECKLIST $S {steps}
        same
        # A place that can't be read is that place's matter: the zone stays what it is.
        $VZBD reset $S --all
        head -c 2M /dev/urandom >/tmp/2m; $VZBD append $S 3 </tmp/2m; is 3 implicit-open 4096
        echo 2 >/sys/bus/pseudo/drivers/scsi_debug/opts
        fails 'I/O error' $VZBD read $S --zone 3 --offset 1M --length 4K
        is 3 implicit-open 4096; $VZBD read $S --zone 3 --length 1M --output /tmp/back
        echo 0 >/sys/bus/pseudo/drivers/scsi_debug/opts
        head -c 1M /tmp/2m | cmp - /tmp/back
        # Places that are no whole blocks of the drive's, by way of a copy.
        $VZBD read $S --zone 3 --offset 512 --length 1000 --output /tmp/back
        tail -c +513 /tmp/2m | head -c 1000 | cmp - /tmp/back
        end
        "#,
        steps = steps()
    );
    passed(&run(&guest, &script));
}
