#!/bin/busybox sh
# The guest's first program. Builds a root from this machine's files (read-only, virtio-fs) under a layer in
# memory, and goes on with stage2 in it. On any failure it says so and stops the machine.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
fail() {
	echo "init: $1" >/dev/ttyS1
	$b sleep 1
	$b poweroff -f
}
# Sets this script's arguments to the folders that must be visible.
. /settings

while read -r module; do
	$b insmod "/modules/$module" || fail "cannot load $module"
done </modules/order

$b mount -t virtiofs -o ro root /host || fail "cannot mount the host's files"
$b mount -t tmpfs -o size=75% tmpfs /rw
$b mkdir /rw/upper /rw/work
$b mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work overlay /new || fail "cannot mount overlay"

# Scratch folders are the guest's own; a workspace or target folder inside one of them stays visible.
number=0
for path in "$@"; do
	number=$((number + 1))
	$b mkdir -p "/shared/$number"
	$b mount --bind "/new$path" "/shared/$number" || fail "no $path"
done
for folder in /run /tmp /var/tmp; do
	$b mkdir -p "/new$folder"
	$b mount -t tmpfs -o mode=1777 tmpfs "/new$folder"
done
number=0
for path in "$@"; do
	number=$((number + 1))
	[ -d "/new$path" ] || $b mkdir -p "/new$path"
	$b mount --move "/shared/$number" "/new$path" || fail "cannot mount $path"
done

$b mkdir -p /new/run/guest /new/usr/lib/modules
$b cp /stage2 /settings /program /bin/busybox /new/run/guest/
$b ln -sfn "$MODULES" "/new/usr/lib/modules/$($b uname -r)"
for folder in proc sys dev; do
	$b mkdir -p "/new/$folder"
	$b mount --move "/$folder" "/new/$folder" || fail "cannot move /$folder"
done
exec $b switch_root /new /run/guest/busybox sh /run/guest/stage2
