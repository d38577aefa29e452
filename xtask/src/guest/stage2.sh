# Process 1 in the guest's real root: mounts what programs expect, runs the program with its output on the
# second serial port, reports its exit code there and stops the machine.
b=/run/guest/busybox
. /run/guest/settings

$b mkdir -p /dev/pts /dev/shm
$b mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
$b mount -t tmpfs -o mode=1777 tmpfs /dev/shm
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup
$b mount -t bpf bpf /sys/fs/bpf
$b mount -t tracefs tracefs /sys/kernel/tracing
$b ln -sfn /proc/self/fd /dev/fd
$b mkdir -p /run/lock /run/sshd
$b hostname guest
$b ip link set lo up

# Not every kernel has all of them as modules.
for module in $LOAD; do
    /sbin/modprobe --quiet "$module"
done

$b stty -F /dev/ttyS1 raw -echo
echo "$MARKER start $($b cut -d ' ' -f 1 /proc/uptime)" >/dev/ttyS1
$b setsid /bin/bash /run/guest/program </dev/null >/dev/ttyS1 2>&1
code=$?
# A newline first: the program's last line may lack one.
printf '\n%s exit %s tainted %s\n' "$MARKER" "$code" "$($b cat /proc/sys/kernel/tainted)" >/dev/ttyS1
# Setting a terminal waits until it has sent everything; what the program left running may hold it open, so that
# closing it does not.
$b stty -F /dev/ttyS1 raw -echo
$b poweroff -f
