"""What is said about a file that cannot be read as a configuration."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from clojarsd.core.errors import BadSettings
from clojarsd.system.settings_file import read_settings

REPOSITORY = Path(__file__).parents[2]


def problems(path: Path) -> tuple[str, ...]:
    with pytest.raises(BadSettings) as caught:
        read_settings(path)
    return caught.value.problems


def test_shipped_file_is_read() -> None:
    assert read_settings(REPOSITORY / "etc/clojarsd.toml").service.name == "clojars"


def test_pipe_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = (REPOSITORY / "etc/clojarsd.toml").read_bytes()
    writer = threading.Thread(target=pipe.write_bytes, args=(content,))
    writer.start()
    try:
        assert read_settings(pipe).service.name == "clojars"
    finally:
        writer.join(timeout=30)


def test_missing_file(tmp_path: Path) -> None:
    assert problems(tmp_path / "x.toml") == (f"{tmp_path}/x.toml: no such file (clojarsd -c FILE names another)",)


def test_directory(tmp_path: Path) -> None:
    assert problems(tmp_path) == (f"{tmp_path}: cannot be read: is a directory",)


def test_file_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    assert problems(tmp_path / "a/b") == (f"{tmp_path}/a/b: cannot be read: not a directory",)


def test_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("")
    path.chmod(0)
    me = os.geteuid()
    os.seteuid(65534 if me == 0 else me)  # root may read everything
    try:
        found = problems(path)
    finally:
        os.seteuid(me)
    assert found == (f"{path}: cannot be read: permission denied",)


def test_byte_order_mark_is_not_minded(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xef\xbb\xbf" + (REPOSITORY / "etc/clojarsd.toml").read_bytes())
    assert read_settings(path) == read_settings(REPOSITORY / "etc/clojarsd.toml")
    path.write_bytes(b"\xef\xbb\xbfa = \n")
    assert problems(path) == (f"{path}: line 1, column 5: is not TOML: invalid value",)


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"# one\n# two \xff\n")
    assert problems(path) == (f"{path}: line 2: byte 0xff is not UTF-8 text",)


def test_file_that_has_no_end() -> None:
    assert problems(Path("/dev/zero")) == ("/dev/zero: is too large for a configuration (at most 1MiB)",)


def test_problems_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("[service]\nname = 1\n")
    assert f"{path}: service.name: 1: is not text (text stands in quotes)" in problems(path)
