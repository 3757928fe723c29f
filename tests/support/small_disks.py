"""Small disks that can really be full. To be mounted in a mount namespace of the test's own (`namespaces.apart`)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from tests.support.real import unavailable


def mount_small(path: Path, size: int, kind: str = "tmpfs") -> None:
    """Mount a file system of so many bytes there; `kind` may be `ext4`, too, in a file beside."""
    if kind == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)
        return
    mkfs = shutil.which(f"mkfs.{kind}", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if mkfs is None or not Path("/dev/loop-control").exists():
        unavailable(f"no mkfs.{kind}, or no loop devices")
    image = path.with_name(f"{path.name}.img")
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([mkfs, "-q", "-F", image], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["mount", "-o", "loop", image, path], check=True)


def fill(disk: Path) -> Path:
    """Write until there is no room at all; the file that takes it."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (65536, 512, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
                    os.fsync(file.fileno())
    return ballast
