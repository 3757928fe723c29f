from __future__ import annotations

import errno

import pytest

from clojarsd.core.steering_reasons import (
    CAP_BPF,
    CAP_NET_ADMIN,
    CAP_SYS_ADMIN,
    Act,
    Powers,
    why_impossible,
    why_no_file_system,
    why_no_room,
    why_not_made,
    why_not_ours,
    why_not_usable,
    why_refused,
    why_taken,
)

BOTH = 1 << CAP_BPF | 1 << CAP_NET_ADMIN


def powers(release: str = "6.1.0-18-amd64", user: int = 0, capabilities: int = BOTH) -> Powers:
    return Powers(release, user, capabilities, 65536)


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (powers(), None),
        (powers(user=1000), None),
        (powers("5.9.0"), None),
        (powers(capabilities=1 << CAP_SYS_ADMIN | 1 << CAP_NET_ADMIN), None),
        (powers("5.8.18"), "the kernel is 5.8.18, and steering needs Linux 5.9 or later"),
        (powers("odd"), "the kernel is odd, and steering needs Linux 5.9 or later"),
        (
            powers(user=1000, capabilities=0),
            "user 1000 may not steer: it takes root, or the capabilities CAP_BPF and CAP_NET_ADMIN "
            "(systemd: AmbientCapabilities=)",
        ),
        (
            powers(user=1000, capabilities=1 << CAP_BPF),
            "steering takes CAP_NET_ADMIN, which this process does not have (systemd: CapabilityBoundingSet=)",
        ),
        (
            powers(user=1000, capabilities=1 << CAP_NET_ADMIN),
            "steering takes CAP_BPF, which this process does not have (systemd: CapabilityBoundingSet=)",
        ),
        (
            powers(capabilities=0),
            "steering takes CAP_BPF and CAP_NET_ADMIN, which this process does not have "
            "(systemd: CapabilityBoundingSet=)",
        ),
    ],
)
def test_a_kernel_that_is_too_old_and_each_missing_capability_have_a_sentence(seen: Powers, reason: str | None) -> None:
    assert why_impossible(seen) == reason


@pytest.mark.parametrize(
    ("act", "number", "release", "reason"),
    [
        (
            Act.MAKE_MAPS,
            errno.EPERM,
            "5.10.0",
            "making the maps failed: RLIMIT_MEMLOCK is 65536 bytes, which is too little on Linux before 5.11 "
            "(systemd: LimitMEMLOCK=)",
        ),
        (
            Act.MAKE_MAPS,
            errno.EPERM,
            "5.11.0",
            "making the maps failed: the kernel does not permit it, although this process has the capabilities "
            "(a user namespace, systemd's SystemCallFilter= or a security module)",
        ),
        (
            Act.LOAD,
            errno.ENOMEM,
            "6.1.0",
            "loading the program failed: the kernel has no memory for it, or this control group has not",
        ),
        (
            Act.MAKE_MAPS,
            errno.EINVAL,
            "6.1.0",
            "making the maps failed: the kernel, 6.1.0, was built without it "
            "(CONFIG_BPF_SYSCALL, CONFIG_INET, CONFIG_BPF_STREAM_PARSER)",
        ),
        (
            Act.MAKE_MAPS,
            errno.ENOSYS,
            "6.1.0",
            "making the maps failed: the kernel, 6.1.0, was built without it "
            "(CONFIG_BPF_SYSCALL, CONFIG_INET, CONFIG_BPF_STREAM_PARSER)",
        ),
        (
            Act.ATTACH,
            errno.E2BIG,
            "6.1.0",
            "attaching the program failed: this network namespace has 64 sk_lookup programs already, "
            "the most that Linux runs",
        ),
        (Act.LOAD, errno.EACCES, "6.1.0", "loading the program failed: what the kernel says"),
        (Act.CHANGE, errno.EBADF, "6.1.0", "changing the maps failed: what the kernel says"),
    ],
)
def test_each_refusal_of_the_kernel_has_a_sentence(act: Act, number: int, release: str, reason: str) -> None:
    assert why_refused(act, number, "what the kernel says", powers(release)) == reason


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            why_no_file_system("/sys/fs/bpf", None),
            "no BPF file system is mounted at /sys/fs/bpf, and only root may mount one (mount -t bpf bpf /sys/fs/bpf)",
        ),
        (
            why_no_file_system("/sys/fs/bpf", "no such device"),
            "no BPF file system is mounted at /sys/fs/bpf, and mounting one failed: no such device",
        ),
        (
            why_not_made("/sys/fs/bpf/clojarsd/x", errno.EROFS, "read-only file system", 0),
            "/sys/fs/bpf/clojarsd/x cannot be made: it is on a file system that is read-only "
            "(systemd: ProtectKernelTunables=)",
        ),
        (
            why_not_made("/sys/fs/bpf/clojarsd/x", errno.EACCES, "permission denied", 7),
            "/sys/fs/bpf/clojarsd/x cannot be made or entered by user 7: permission denied "
            "(systemd: ExecStartPre=+ of clojarsd.service)",
        ),
        (
            why_not_made("/sys/fs/bpf/clojarsd/x", errno.ENOSPC, "no space left on device", 7),
            "/sys/fs/bpf/clojarsd/x cannot be made or entered: no space left on device",
        ),
        (
            why_not_ours("/sys/fs/bpf/clojarsd/x", 5, 7),
            "/sys/fs/bpf/clojarsd/x belongs to user 5, and this daemon is user 7 "
            "(remove it with: clojarsctl daemon cleanup)",
        ),
        (
            why_taken("x", "/sys/fs/bpf/clojarsd/x", 812),
            "process 812 steers as x already: it holds /sys/fs/bpf/clojarsd/x",
        ),
        (
            why_taken("x", "/sys/fs/bpf/clojarsd/x", None),
            "another daemon steers as x already: it holds /sys/fs/bpf/clojarsd/x",
        ),
        (
            why_not_usable("http", "primary", "it does not listen"),
            "the listening socket of primary cannot be used for frontend http: it does not listen",
        ),
        (why_no_room(["a", "b"], 1), "2 frontends, those that they replace included, are more than 1"),
    ],
)
def test_each_obstacle_has_a_sentence(said: str, reason: str) -> None:
    assert said == reason
