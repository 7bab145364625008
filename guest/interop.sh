# What one cell of docs/interop.md does in a Linux guest whose disk is /dev/vda: 64 zones of 16 MiB, 12 MiB of which can be written, 4 of
# them conventional; 6 may be open and 8 active. Standard output is the report of the zones at the end, for a comparison with what
# the other side says; all else goes to standard error. What is on the disk is gone.
#
# $1 is a file with at least 12 MiB of what is to be written; random bytes otherwise.
set -eu
export LC_ALL=C
disk=/dev/vda queue=/sys/block/vda/queue data=${1:-/tmp/data}
[ -e "$data" ] || head -c 12M /dev/urandom >"$data"
sectors=$(cat $queue/chunk_sectors)

say() { echo "$*" >&2; }
zone() { echo $(($1 * sectors)); }
line() { blkzone report -o "$(zone "$1")" -c 1 $disk; }
is() { line "$1" | grep -q "$2" || { say "zone $1 is not $2: $(line "$1")"; exit 1; }; }
refused() {
    if "$@" 2>/tmp/refusal; then say "not refused: $*"; exit 1; fi
    say "$1 $2 ... refused: $(sed 's/.*: //' /tmp/refusal)"
}
# Blocks of 4 KiB, each of the data at its own place in the zone: which zone, the first block, how many. In larger requests where
# that is possible.
place() {
    unit=1
    [ $((($2 | $3) % 16)) != 0 ] || unit=16
    from=$(($2 / unit)) to=$((($(zone "$1") / 8 + $2) / unit)) count=$(($3 / unit)) bytes=$((4096 * unit))
}
write() {
    place "$@"
    dd if="$data" of=$disk bs=$bytes skip=$from seek=$to count=$count oflag=direct conv=notrunc status=none
}
same() {
    place "$@"
    dd if=$disk bs=$bytes skip=$to count=$count iflag=direct status=none | cmp -n $(($3 * 4096)) - "$data" 0 $(($2 * 4096))
}
# The pattern (V31) in the first blocks.
unwritten() {
    dd if=$disk bs=4096 skip=$(($(zone "$1") / 8)) count=16 iflag=direct status=none | od -An -v -tx1 -w1 | sort -u | tr -d ' \n'
}

say "Linux $(uname -r)"
for name in zoned nr_zones chunk_sectors max_open_zones max_active_zones zone_append_max_bytes; do
    say "$name $(cat $queue/$name)"
done

# Appends: that is how btrfs writes data into sequential zones.
mkfs.btrfs -q -f -O zoned -d single -m single $disk >/dev/null 2>&1
mount $disk /mnt
cp "$data" /mnt/data
umount /mnt
mount $disk /mnt
cmp /mnt/data "$data"
umount /mnt
blkzone reset -o "$(zone 4)" $disk

# Writes: anywhere in a conventional zone, at the write pointer in a sequential one.
write 1 100 16; same 1 100 16
write 5 0 48; is 5 'wptr 0x000180.*zcond: 2(oi)'; same 5 0 48
write 5 48 16; is 5 'wptr 0x000200'; same 5 48 16
refused write 5 128 1
refused write 5 0 1
is 5 'wptr 0x000200'

# Management of zones.
blkzone open -o "$(zone 6)" -c 1 $disk; is 6 'zcond: 3(oe)'
blkzone open -o "$(zone 7)" -c 1 $disk; write 7 0 1
blkzone close -o "$(zone 7)" -c 1 $disk; is 7 'wptr 0x000008.*zcond: 4(cl)'
blkzone open -o "$(zone 8)" -c 1 $disk
blkzone close -o "$(zone 8)" -c 1 $disk; is 8 'zcond: 1(em)'
write 9 0 2
blkzone finish -o "$(zone 9)" -c 1 $disk; is 9 'zcond:14(fu)'
write 10 0 3072; is 10 'zcond:14(fu)'; same 10 0 3072
write 11 0 3072
blkzone reset -o "$(zone 11)" -c 1 $disk; is 11 'wptr 0x000000.*zcond: 1(em)'
say "what is not written reads as $(unwritten 11)"
refused blkzone reset -o 0 -c 1 $disk

# Limits.
blkzone open -o "$(zone 12)" -c 4 $disk
refused blkzone open -o "$(zone 16)" -c 2 $disk
blkzone reset -o "$(zone 12)" -c 6 $disk
write 63 0 5

blkzone report $disk
