"""What a JVM says is understood, archives are asked for with the right options, and records are read as they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath

import pytest

from clojarsd.core.class_data import (
    FEWEST_CLASSES,
    ArchiveRecord,
    Jvm,
    Made,
    Stamp,
    archive_options,
    classes_in,
    describe_made,
    dump_command,
    has_archive,
    kept_options,
    layout_options,
    major_version,
    property_of,
    record_as_json,
    record_from_json,
    trial_command,
    unfit_entries,
    with_archive,
)
from clojarsd.core.errors import Failed

RECORD = ArchiveRecord(
    release="/r/1.jar",
    paths=(Stamp("/r/1.jar", 7, 1_700_000_000_000_000_001),),
    java="/jdk/bin/java",
    jvm=(Stamp("/jdk/lib/modules", 9, 2),),
    size=38_000_000,
    seconds=2.1,
    made_at="2026-11-28T22:00:00.000Z",
)
JVM = Jvm("/jdk/bin/java", "lib/a.jar:/r/1.jar", "/home/app", ("-XX:MaxHeapSize=1",))
MANY = "\n".join(f"      |                        com.example.Thing{number}" for number in range(FEWEST_CLASSES))
TREE = f"""\
+-- <bootstrap>
      |
      |               Classes: java.lang.Object
      |                        [Ljava.lang.Object;
      |                        java.util.Map$Entry
      |                        java.util.regex.Pattern$$Lambda$18/0x800000028
{MANY}
      |                        (1206 classes)
      |
      |        Hidden Classes: java.lang.invoke.LambdaForm$MH/0x00007f45d404a4a0
      |                        (26 hidden classes)
      |
      +-- "platform", jdk.internal.loader.ClassLoaders$PlatformClassLoader
            |
            |               Classes: java.sql.Timestamp
            |                        (1 class)
            |
            +-- "app", jdk.internal.loader.ClassLoaders$AppClassLoader
                  |
                  |               Classes: clojars.main
                  |                        clojars.log$fn__173
                  |                        java.lang.Object
                  |                        (2 classes)
                  |
                  +-- clojure.lang.DynamicClassLoader (+ 12 more)

                              Classes: user$eval1
                                       (1 class)
"""


def test_the_classes_are_those_of_the_loaders_that_an_archive_can_hold() -> None:
    """Neither arrays nor hidden classes, and none that a loader of the application has found."""
    classes = classes_in(TREE)
    assert classes[:3] == ("java/lang/Object", "java/util/Map$Entry", "com/example/Thing0")
    assert classes[-3:] == ("java/sql/Timestamp", "clojars/main", "clojars/log$fn__173")
    assert len(classes) == FEWEST_CLASSES + 5


@pytest.mark.parametrize("text", ["", "Unknown diagnostic command", TREE.replace("<bootstrap>", "<boot>")])
def test_a_list_that_is_not_understood_is_no_list(text: str) -> None:
    with pytest.raises(Failed, match=r"its list of classes is not understood$"):
        classes_in(text)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("OpenJDK 64-Bit Server VM version 17.0.15+6-Debian-1deb12u1\nJDK 17.0.15\n", 17),
        ("OpenJDK 64-Bit Server VM version 25.392-b08\nJDK 8.0_392\n", 8),
        ("something else", None),
    ],
)
def test_the_version(text: str, version: int | None) -> None:
    assert major_version(text) == version


def test_properties_are_read_as_java_writes_them() -> None:
    text = "#Sat Nov 28\njava.home=/usr/lib/jvm/x\njava.class.path=/r/a\\:b\\\\c \\u00e9.jar\nempty\n"
    assert property_of(text, "java.class.path") == "/r/a:b\\c é.jar"
    assert property_of(text, "java.home") == "/usr/lib/jvm/x"
    assert property_of(text, "absent") is None


FLAGS = """[Global flags]
      int ObjectAlignmentInBytes                   = 8                              {product lp64_product} {default}
     bool UseCompressedOops                        = false                          {product lp64_product} {ergonomic}
     bool UseCompressedClassPointers               = true                           {product lp64_product} {default}
"""


def test_objects_are_to_lie_as_they_do_in_the_jvm_that_runs() -> None:
    assert layout_options("") == ("-XX:MaxHeapSize=536870912",)
    assert layout_options(FLAGS)[1:] == (
        "-XX:-UseCompressedOops",
        "-XX:+UseCompressedClassPointers",
        "-XX:ObjectAlignmentInBytes=8",
    )
    compact = "     bool UseCompactObjectHeaders                  = true             {product} {command line}\n"
    assert layout_options(compact)[1:] == ("-XX:+UnlockExperimentalVMOptions", "-XX:+UseCompactObjectHeaders")


def test_only_what_an_archive_depends_on_is_kept_of_the_arguments() -> None:
    words = ["-Xmx4g", "-javaagent:/a.jar", "-cp", "/c.jar", "--enable-preview", "-Xbootclasspath/a:/b.jar"]
    assert kept_options([*words, "-jar", "x", "--enable-preview"]) == ("--enable-preview", "-Xbootclasspath/a:/b.jar")
    assert kept_options(["--enable-preview", "Main", "-Xbootclasspath/a:/c.jar"]) == ("--enable-preview",)
    assert kept_options([]) == ()


def test_the_commands_that_make_and_try_an_archive() -> None:
    dump = dump_command(JVM, "/r/.cds/x.classes", "/r/.cds/x.new")
    assert dump[:2] == ("/jdk/bin/java", "-XX:MaxHeapSize=1")
    assert dump[-2:] == ("-cp", "lib/a.jar:/r/1.jar")
    files = {"-XX:SharedClassListFile=/r/.cds/x.classes", "-XX:SharedArchiveFile=/r/.cds/x.new"}
    assert {"-Xshare:dump", *files} < set(dump)
    trial = trial_command(JVM, "/r/.cds/x.new")
    assert trial[2:6] == archive_options("/r/.cds/x.new"), "the options of a start are tried"
    assert trial[6:] == ("-Xshare:on", "-cp", "lib/a.jar:/r/1.jar", "-version")
    assert JVM.entries == (PurePath("/home/app/lib/a.jar"), PurePath("/r/1.jar"))


@pytest.mark.parametrize("java", ["java", "/usr/bin/java"])
def test_a_jvm_gets_the_options_first(java: str) -> None:
    options = archive_options("/r/.cds/1.jar.jsa")
    command, environment = with_archive((java, "-jar", "x"), {"A": "b"}, "/r/.cds/1.jar.jsa")
    assert command == (java, *options, "-jar", "x")
    assert environment == {"A": "b"}


def test_another_program_finds_them_in_its_environment() -> None:
    command, environment = with_archive(("run", "x"), {"A": "b"}, "/r/.cds/1.jar.jsa")
    assert command == ("run", "x")
    assert environment == {"A": "b", "CLOJARSD_JAVA_OPTIONS": " ".join(archive_options("/r/.cds/1.jar.jsa"))}
    assert with_archive(("run", "x"), {"A": "b"}, "/with space/1.jsa") == (("run", "x"), {"A": "b"})


@pytest.mark.parametrize(
    ("command", "environment", "file", "says"),
    [
        (("java", "-jar", "x"), {}, "", False),
        (("java", "-Xshare:off", "-jar", "x"), {}, "", True),
        (("java", "-XX:SharedArchiveFile=/mine.jsa", "x"), {}, "", True),
        (("java", "-XX:ArchiveClassesAtExit=/mine.jsa", "x"), {}, "", True),
        (("java", "-XX:AOTCache=/mine.aot", "x"), {}, "", True),
        (("java", "x"), {"JDK_JAVA_OPTIONS": "-Xshare:off"}, "", True),
        (("java", "x"), {"JAVA_TOOL_OPTIONS": "-Xmx1g -XX:SharedArchiveFile=/m.jsa"}, "", True),
        (("java", "x"), {"OTHER": "-Xshare:off"}, "", False),
        (("java", "x"), {}, "JAVA_TOOL_OPTIONS=-Xshare:off\n", True),
    ],
)
def test_who_says_which_archive_to_use_is_left_alone(
    command: tuple[str, ...], environment: dict[str, str], file: str, says: bool
) -> None:
    assert has_archive(command, environment, file) == says


def test_a_record_is_read_as_it_was_written_and_nothing_else_is() -> None:
    document = record_as_json(RECORD)
    assert record_from_json(document) == RECORD
    assert record_from_json(record_as_json(replace(RECORD, format=2))) is None
    others: list[object] = [None, [], {}, {**document, "paths": 3}, {"format": 1}]
    assert [record_from_json(other) for other in others] == [None] * 5


def test_what_is_said_of_an_archive_that_was_made() -> None:
    made = Made("/r/.cds/1.jar.jsa", 38_200_000, 2.13)
    begin = "archive /r/.cds/1.jar.jsa: 38 MB in 2.1 s"
    assert describe_made("backup", made, 1.418, had_one=False, is_used=True) == (
        f"{begin}; start-up without it took 1.42 s; `clojarsctl restart backup` starts with it"
    )
    assert describe_made("backup", made, 0.9, had_one=True, is_used=True) == (
        f"{begin}; start-up with the one before took 0.90 s; `clojarsctl restart backup` starts with it"
    )
    assert describe_made("backup", made, None, had_one=False, is_used=False) == (
        f"{begin}; starts use it when deploy.cds is true"
    )


def test_a_class_path_with_directories() -> None:
    assert unfit_entries(["/a", "/b"]) == (
        "its class path has directories (/a, /b), and a JVM archives classes from jars alone;"
        " a release as one jar can have an archive"
    )
