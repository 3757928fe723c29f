# The first process of a sandbox: gives itself a file system of its own, then becomes systemd.
# Run by systemd_sandbox.py inside new mount, PID, network, UTS, IPC and cgroup namespaces; never by hand.
#
#   systemd_sandbox.sh WORK UNITS NOTIFY [SHARED ...]
#
#   WORK     an empty directory for the mounts         UNITS    a directory with what goes to /etc/systemd/system
#   NOTIFY   a directory with the socket `notify`      SHARED   directories on other mounts to show, read-only
#
# What keeps the machine outside untouched: every mount is private; the machine's root is only the lower layer of an
# overlay whose upper layer is a tmpfs, and systemd-tmpfiles, which empties /tmp at boot, is masked on top of that (a
# test's own files are there); /dev is built anew; /proc/sys and /sys are read-only, so that no kernel setting changes.
set -euo pipefail
work=$1 units=$2 notify=$3
shift 3

mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs "$work"
mkdir "$work/upper" "$work/scratch" "$work/root"
root=$work/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/scratch" "$root"

for directory in "$@"; do
  mkdir -p "$root$directory"
  mount --bind "$directory" "$root$directory"
  mount -o remount,bind,ro "$root$directory"
done

mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t bpf -o mode=0700 bpf "$root/sys/fs/bpf"

mount -t tmpfs -o mode=0755,nosuid tmpfs "$root/dev"
for node in null zero full random urandom tty; do
  : > "$root/dev/$node"
  mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for number in 0 1 2; do
  name=(stdin stdout stderr)
  ln -s "/proc/self/fd/$number" "$root/dev/${name[number]}"
done

mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mkdir -p "$root/run/host/notify"
mount --bind "$notify" "$root/run/host/notify"

# none of the machine's own services: /etc/systemd/system is ours alone, and of systemd's early ones only what
# a service needs (the journal, users)
mount -t tmpfs -o mode=0755 tmpfs "$root/etc/systemd/system"
cp -R "$units/." "$root/etc/systemd/system/"
for unit in systemd-tmpfiles-{setup.service,setup-dev.service,clean.timer} systemd-{sysctl,modules-load}.service \
  systemd-{random-seed,binfmt,remount-fs,hwdb-update,udevd,udev-trigger,machine-id-commit}.service \
  systemd-{journal-flush,update-utmp,resolved,networkd}.service dev-hugepages.mount dev-mqueue.mount \
  sys-kernel-{debug,tracing,config}.mount sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount; do
  ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
: > "$root/etc/fstab"

ip link set lo up
cd "$root"
mkdir .machine
pivot_root . .machine
umount -l /.machine
rmdir /.machine
export container=sandbox NOTIFY_SOCKET=/run/host/notify/notify
unset LD_PRELOAD LD_LIBRARY_PATH
exec /usr/lib/systemd/systemd --system --unit=basic.target --log-target=journal --show-status=no
