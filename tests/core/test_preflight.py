"""What a deploy needs, from facts to sentences."""

from __future__ import annotations

from clojarsd.core.preflight import Disk, Found, Tool, disk_problems, tool_problem, tools_of

MIB = 1024**2
PATH = "/usr/bin:/bin"
LEIN = Tool("lein", ("test", "build"), PATH)


def test_each_tool_is_needed_once() -> None:
    commands = [
        ("test", ("lein", "test"), PATH),
        ("build", ("lein", "uberjar"), PATH),
        ("build", ("lein", "pom"), PATH),
        ("smoke", (), PATH),
        ("smoke", ("./smoke", "x"), PATH),
        ("primary", ("java",), "/opt/bin"),
        ("backup", ("/opt/bin/java",), PATH),
    ]
    java = Tool("java", ("primary",), "/opt/bin"), Tool("/opt/bin/java", ("backup",), PATH)
    assert tools_of(commands) == (LEIN, *java)


def test_what_is_wrong_with_a_tool() -> None:
    assert tool_problem(LEIN, Found.TOOL, "/usr/bin/lein", "clojars") is None
    assert tool_problem(LEIN, Found.NOTHING, "lein", "clojars") == (
        "test, build: lein is not on the PATH of clojars (/usr/bin:/bin)"
    )
    own = Tool("/opt/lein", ("test",), PATH)
    assert tool_problem(own, Found.NOTHING, "/opt/lein", "clojars") == "test: /opt/lein does not exist"
    assert tool_problem(own, Found.DIRECTORY, "/opt/lein", "x") == "test: /opt/lein is a directory, not a command"
    assert tool_problem(own, Found.NOT_EXECUTABLE, "/opt/lein", "x") == "test: /opt/lein may not be executed by x"


def test_min_free_must_be_free() -> None:
    disk = Disk({"work_dir": "/w", "releases": "/r"}, 100 * MIB, None)
    assert disk_problems([disk], 100 * MIB, 0) == []
    assert disk_problems([disk], 512 * MIB, MIB) == [
        "too little room in work_dir /w, releases /r: 100 MiB free, 512 MiB needed (min_free)"
    ]


def test_three_releases_must_find_room() -> None:
    disk = Disk({"releases": "/r"}, 200 * MIB, 5000)
    assert disk_problems([disk], 100 * MIB, 80 * MIB) == [
        "too little room in releases /r: 200 MiB free, 240 MiB needed (3 times the current release)"
    ]


def test_where_only_records_are_written_little_is_enough() -> None:
    disks = [Disk({"state_dir": "/s"}, 70 * MIB, None), Disk({"log_dir": "/l"}, 60 * MIB, None)]
    assert disk_problems(disks, 512 * MIB, 0) == [
        "too little room in log_dir /l: 60 MiB free, 64 MiB needed (for journal and logs)"
    ]
    assert disk_problems(disks, 10 * MIB, 0) == []


def test_files_need_inodes() -> None:
    assert disk_problems([Disk({"work_dir": "/w"}, None, 1999)], 1, 0) == [
        "too few inodes in work_dir /w: 1999 free, 2000 needed"
    ]
    assert disk_problems([Disk({"work_dir": "/w"}, None, 2000)], 1, 0) == []
