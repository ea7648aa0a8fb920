"""Configuration files that nobody named: whose are obeyed, what they may set, and what they cost."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ema_cli.cli.batch_options import BatchCommandLine, BatchOptions
from ema_cli.cli.config import toml_file
from ema_cli.cli.config.settings import ONLY_FLAGS, Setting, from_table
from ema_cli.cli.config.sources import find_file, read_file
from ema_cli.cli.config.toml_file import MOST_BYTES, parse_toml, read_toml
from ema_cli.cli.config.trust import leads_outside, refuse_in_found, why_ignored
from ema_cli.errors import UsageError
from ema_cli.options.declaration import declared
from tests.helpers.program import Run

ME, OTHER, ROOT = 1000, 1001, 0
NOBODY = 65534
OPTIONS = [one for one in (*declared(BatchOptions), *declared(BatchCommandLine)) if one.key not in ONLY_FLAGS]
NEVER = {"force", "manifest"}
BELOW = {"output", "report", "index", "continue-from"}
HARMLESS = {
    *("allow", "allow-nonfinite", "buffers", "ci", "clock", "decay", "device", "dry-run", "dtype", "every"),
    *("exclude", "format", "from", "geometry", "half-life", "include", "init", "inv-gamma", "jobs", "json", "key"),
    *("last", "lora", "max-memory", "max-shard-size", "metadata", "method", "no-color", "no-normalize"),
    *("no-probe", "on-missing", "one-minus-decay", "order", "per", "power", "quiet", "read-back", "resume", "sha256"),
    *("shape", "sigma-rel", "steps", "strict", "strip-prefix", "threads", "tied", "to", "verbose", "warmup"),
    "weights",
}
as_root = pytest.mark.skipif(os.geteuid() != ROOT, reason="needs files of other users")


@dataclass(frozen=True)
class Held:
    """The owner, the permissions and the number of names of a file."""

    st_uid: int = ME
    st_mode: int = 0o644
    st_nlink: int = 1


FOLDER = Held(st_mode=0o755)


@pytest.mark.parametrize(
    ("file", "folder", "is_link", "reason"),
    [
        (Held(), FOLDER, False, ""),
        (Held(st_uid=ROOT), Held(st_uid=ROOT, st_mode=0o755), False, ""),
        (Held(st_mode=0o664), Held(st_mode=0o775), False, ""),
        (Held(st_mode=0o660), Held(st_uid=OTHER, st_mode=0o2770), False, ""),
        (Held(), Held(st_uid=ROOT, st_mode=0o1777), False, ""),
        (Held(), FOLDER, True, ""),
        (Held(st_nlink=2), FOLDER, False, ""),
        (Held(st_uid=OTHER), FOLDER, False, "another user (uid 1001)"),
        (Held(st_uid=OTHER, st_mode=0o444), Held(st_uid=ROOT, st_mode=0o1777), False, "another user"),
        (Held(st_uid=OTHER), FOLDER, True, "another user"),
        (Held(st_mode=0o646), FOLDER, False, "all users can write to it"),
        (Held(st_uid=ROOT, st_mode=0o666), FOLDER, False, "all users can write to it"),
        (Held(), Held(st_mode=0o777), False, "rename"),
        (Held(), Held(st_uid=ROOT, st_mode=0o777), False, "rename"),
        (Held(), Held(st_uid=ROOT, st_mode=0o1777), True, "link"),
        (Held(st_nlink=2), Held(st_uid=ROOT, st_mode=0o1777), False, "link"),
        (Held(st_uid=ROOT), Held(st_uid=OTHER, st_mode=0o755), True, "link"),
        (Held(st_nlink=3), Held(st_uid=OTHER, st_mode=0o755), False, "link"),
    ],
)
def test_whose_files_are_obeyed(file: Held, folder: Held, is_link: bool, reason: str) -> None:
    """Files of the user and of root that nobody else can write, and that nobody else put there."""
    found = why_ignored(file, folder, user=ME, is_link=is_link)
    assert reason in found
    assert bool(reason) == bool(found)


def test_root_obeys_only_root() -> None:
    """For root there is no second trusted user."""
    assert why_ignored(Held(st_uid=ME), FOLDER, user=ROOT, is_link=False)
    assert not why_ignored(Held(st_uid=ROOT), FOLDER, user=ROOT, is_link=False)


def obeyed(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the file that the search in a folder obeys, and the messages about those that it ignores."""
    search = find_file(folder)
    assert all("--config FILE" in one.hint for one in search.ignored)
    return (search.file.path if search.file else None), [one.message for one in search.ignored]


@pytest.fixture
def inner(tmp_path: Path) -> Path:
    """Return a folder with a good file in the folder above it."""
    (tmp_path / "ema-avg.toml").write_text("every = 2\n")
    (tmp_path / "inner").mkdir()
    return tmp_path / "inner"


def test_an_ignored_file_does_not_hide_the_one_above_it(inner: Path) -> None:
    """A file that all can write to is skipped with a warning, and the search goes on."""
    (inner / "ema-avg.toml").write_text("every = 3\n")
    (inner / "ema-avg.toml").chmod(0o666)
    (inner / "pyproject.toml").write_text("[tool.ema-avg]\nevery = 4\n")
    (inner / "pyproject.toml").chmod(0o646)
    path, ignored = obeyed(inner)
    assert path == inner.parent / "ema-avg.toml"
    assert [name in message for name, message in zip(("ema-avg.toml", "pyproject.toml"), ignored, strict=True)]
    (inner / "pyproject.toml").chmod(0o664)
    assert obeyed(inner)[0] == inner / "pyproject.toml"


def test_a_pyproject_that_is_not_about_us_is_not_warned_about(inner: Path) -> None:
    """Only a file that would set something is worth a warning."""
    (inner / "pyproject.toml").write_text('[project]\ndependencies = ["ema-avg"]\n')
    (inner / "pyproject.toml").chmod(0o666)
    assert obeyed(inner) == (inner.parent / "ema-avg.toml", [])


@pytest.mark.parametrize("text", ["= broken", "every = 'x'", "\0" * 10, "x" * (MOST_BYTES + 1)])
def test_an_ignored_file_cannot_stop_a_run(text: str, inner: Path) -> None:
    """Whatever is in it, it is a warning, not an error."""
    (inner / "ema-avg.toml").write_text(text)
    (inner / "ema-avg.toml").chmod(0o666)
    path, ignored = obeyed(inner)
    assert path == inner.parent / "ema-avg.toml"
    assert len(ignored) == 1


def test_a_folder_in_which_all_can_rename(inner: Path) -> None:
    """There, anybody can give another file of the user the name; in a sticky folder only its owner can."""
    (inner / "ema-avg.toml").write_text("every = 3\n")
    inner.chmod(0o777)
    assert obeyed(inner)[0] == inner.parent / "ema-avg.toml"
    inner.chmod(0o1777)
    assert obeyed(inner) == (inner / "ema-avg.toml", [])


def link(place: Path, target: Path) -> None:
    """Make a symbolic link."""
    place.symlink_to(target)


@pytest.mark.parametrize("make", [link, os.link], ids=["symbolic", "hard"])
def test_links(make: Callable[[Path, Path], None], inner: Path) -> None:
    """A link in a folder of the user is followed; in a folder that all can write to, anybody may have made it."""
    (inner.parent / "other.toml").write_text("every = 3\n")
    if make is link:
        make(inner / "ema-avg.toml", inner.parent / "other.toml")
    else:
        make(inner.parent / "other.toml", inner / "ema-avg.toml")
    assert obeyed(inner) == (inner / "ema-avg.toml", [])
    inner.chmod(0o1777)
    path, (message,) = obeyed(inner)
    assert path == inner.parent / "ema-avg.toml"
    assert "link" in message


def test_the_target_of_a_link_is_judged(inner: Path) -> None:
    """The permissions are those of the file that is read."""
    (inner.parent / "other.toml").write_text("every = 3\n")
    (inner.parent / "other.toml").chmod(0o666)
    (inner / "ema-avg.toml").symlink_to("../other.toml")
    assert obeyed(inner)[0] == inner.parent / "ema-avg.toml"


def test_what_is_no_file_is_not_opened(inner: Path) -> None:
    """Pipes, folders, sockets and links to devices and to nothing do not count, and nothing waits for them."""
    os.mkfifo(inner / "ema-avg.toml")
    (inner / "pyproject.toml").symlink_to("/dev/zero")
    assert obeyed(inner) == (inner.parent / "ema-avg.toml", [])
    (inner / "ema-avg.toml").unlink()
    (inner / "ema-avg.toml").mkdir()
    (inner / "pyproject.toml").unlink()
    (inner / "pyproject.toml").symlink_to("pyproject.toml")
    assert obeyed(inner) == (inner.parent / "ema-avg.toml", [])


@as_root
def test_files_of_other_users(inner: Path, ema_avg: Run) -> None:
    """A file of another user is ignored by root too, readable or not; the message has the user."""
    file = inner / "ema-avg.toml"
    file.write_text("every = 3\n")
    os.chown(file, NOBODY, NOBODY)
    for mode in (0o644, 0o400, 0o000):
        file.chmod(mode)
        path, (message,) = obeyed(inner)
        assert path == inner.parent / "ema-avg.toml"
        assert f"uid {NOBODY}" in message
    os.chown(inner, NOBODY, NOBODY)
    os.chown(file, ROOT, ROOT)
    assert obeyed(inner)[0] == file
    file.unlink()
    file.symlink_to("../ema-avg.toml")  # a link in a folder of another user, to a file of root
    assert "link" in obeyed(inner)[1][0]
    assert ema_avg("--show-config").returncode == 0


@as_root
def test_another_user_obeys_root_and_itself() -> None:
    """The same files, seen by an ordinary user; a file that it cannot read is an error only if it would be obeyed."""
    with tempfile.TemporaryDirectory() as outer:  # that of pytest is closed to other users
        Path(outer).chmod(0o755)
        file = Path(outer, "ema-avg.toml")
        file.write_text("every = 3\n")

        def as_nobody() -> tuple[Path | None, list[str]]:
            os.seteuid(NOBODY)
            try:
                return obeyed(file.parent)
            finally:
                os.seteuid(ROOT)

        assert as_nobody() == (file, [])
        os.chown(file, NOBODY, NOBODY)
        assert as_nobody() == (file, [])
        os.chown(file, OTHER, OTHER)
        assert f"uid {OTHER}" in as_nobody()[1][0]
        file.chmod(0o600)
        assert f"uid {OTHER}" in as_nobody()[1][0]
        os.chown(file, ROOT, ROOT)
        with pytest.raises(UsageError, match="cannot be read: Permission denied"):
            as_nobody()


def test_every_option_has_its_place() -> None:
    """A new option belongs to one of the lists: may a file of a downloaded project set it? Nobody may forget that."""
    places: dict[str, set[str]] = {"never": set(), "below": set(), "any": set()}
    for one in OPTIONS:
        places[one.in_found_file].add(one.key)
    assert places == {"never": NEVER, "below": BELOW, "any": HARMLESS}


def refused(folder: Path, file: Path, **values: object) -> str:
    """Return why settings of a file that was found are refused; empty if they are not."""
    settings = from_table(values, OPTIONS, file)
    try:
        refuse_in_found(settings, OPTIONS, file, folder)
    except UsageError as error:
        return error.message if "--config FILE" in error.hint else "without the way"
    return ""


@pytest.mark.parametrize("key", sorted(NEVER | BELOW))
def test_what_a_file_above_the_working_directory_cannot_set(key: str, tmp_path: Path) -> None:
    """No file that is written to or read, and nothing that removes a protection."""
    value = True if key == "force" else "a.json"
    message = refused(tmp_path / "inner", tmp_path / "ema-avg.toml", **{key: value})
    assert f"{key} can" in message
    assert "ema-avg.toml" in message
    assert bool(refused(tmp_path, tmp_path / "ema-avg.toml", **{key: value})) == (key in NEVER)
    assert not refused(tmp_path / "inner", tmp_path / "ema-avg.toml", decay=0.5, strict=True)


@pytest.mark.parametrize(
    ("path", "outside"),
    [
        ("ema.safetensors", False),
        ("out/ema_{decay}.safetensors", False),
        ("./out/", False),
        ("averages/{name}/ema.safetensors", False),
        ("{run}/ema.safetensors", False),
        ("inside/ema.safetensors", False),
        ("a..b/x", False),
        ("/tmp/ema.safetensors", True),
        ("~/ema.safetensors", True),
        ("~other/ema.safetensors", True),
        ("..", True),
        ("../ema.safetensors", True),
        ("out/../../ema.safetensors", True),
        ("{run}/../ema.safetensors", True),
        ("{run}", True),
        ("{run}_ema.safetensors", True),
        ("a/{run}/ema.safetensors", True),
        ("s3://bucket/ema.safetensors", True),
        ("file:///tmp/ema.safetensors", True),
        ("zip://x::file://y", True),
        ("leaves/ema.safetensors", True),
        ("leaves/deep/er/ema.safetensors", True),
        ("lea{decay}/ema.safetensors", True),
        ("{method}{decay}/ema.safetensors", True),
        ("dangles.safetensors", True),
        ("dang{decay}.safetensors", True),
        ("dangles/x.safetensors", True),
        (".hid{name}/x.safetensors", True),
        ("{name}den/x.safetensors", True),
        ("{run}/trap/x.safetensors", True),
        ("inside/back/x.safetensors", True),
    ],
)
def test_paths_below_the_working_directory(path: str, outside: bool, tmp_path: Path) -> None:
    """No absolute path, no URL, no ``~``, no ``..``, and no link that leads out, also not by the value of a field."""
    here = tmp_path / "here"
    (here / "real").mkdir(parents=True)
    (here / "inside").symlink_to("real")
    (here / "real" / "back").symlink_to(tmp_path)
    (here / "leaves").symlink_to(tmp_path)
    (here / ".hidden").symlink_to(tmp_path)
    (here / "dangles.safetensors").symlink_to("/nowhere/x.safetensors")
    (here / "dangles").symlink_to("../missing")
    (here / "{run}").mkdir()
    (here / "{run}" / "trap").symlink_to(tmp_path)
    assert leads_outside(path, here) == outside


def test_all_that_is_refused_is_one_message(tmp_path: Path) -> None:
    """Every key is named, and every path of a list is checked."""
    message = refused(tmp_path, tmp_path / "ema-avg.toml", force=True, report=["a.html", "/b.html"], output="ok")
    assert "force cannot be set" in message
    assert 'report = "/b.html"' in message
    assert "output" not in message


def test_a_folder_with_the_letters_of_another(tmp_path: Path) -> None:
    """``here-too`` is not below ``here``."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here-too").mkdir()
    (tmp_path / "here" / "out").symlink_to("../here-too")
    assert leads_outside("out/x", tmp_path / "here")


def test_the_program_refuses_what_only_a_named_file_may_set(run_folder: Path, ema_avg: Run) -> None:
    """Exit 2 with the way, for runs and plans; the same file may set it where it is named."""
    folder = run_folder.parent
    (folder / "elsewhere").mkdir()
    victim = folder / "elsewhere" / "victim.json"
    victim.write_text("{}")
    text = f'force = true\ndecay = 0.5\nno-probe = true\nreport = ["{victim}"]\noutput = "a.safetensors"\n'
    (folder / "ema-avg.toml").write_text(text)
    for command in ([], ["plan"], ["batch"]):
        done = ema_avg(*command, run_folder)
        assert done.returncode == 2, done.stderr
        assert "force cannot be set" in done.stderr
        assert "--config FILE" in done.stderr
    assert victim.read_text() == "{}"
    assert ema_avg(run_folder, "--config", "ema-avg.toml", "-q").returncode == 0
    assert json.loads(victim.read_text())["command"]["config"]["path"] == "ema-avg.toml"


def test_a_run_names_its_file_and_its_options(run_folder: Path, ema_avg: Run) -> None:
    """On the screen and in the reports; a value that a flag replaced is not of the file."""
    config = run_folder.parent / "pyproject.toml"
    config.write_text('[tool.ema-avg]\ndecay = 0.5\nbuffers = "average"\nno-probe = true\noutput = "out.safetensors"\n')
    used = {"path": str(config), "options": ["no-probe", "buffers", "decay"]}
    done = ema_avg(run_folder, "-o", "a.safetensors", "--report", "a.md", "--report", "a.html")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "pyproject.toml" in line]
    assert line.startswith("options from ")
    assert set(line.rpartition(": ")[2].split(", ")) == set(used["options"])
    report = json.loads((run_folder.parent / "a.report.json").read_text())["command"]
    assert report["config"]["path"] == used["path"]
    assert set(report["config"]["options"]) == set(used["options"])
    assert "config" not in report["options"]
    assert "Options from" in (run_folder.parent / "a.md").read_text()
    assert "Options from" in (run_folder.parent / "a.html").read_text()
    plan = json.loads(ema_avg("plan", run_folder, "--half-life", "2", "--json").stdout)
    assert set(plan["config"]["options"]) == {"no-probe", "buffers", "output"}
    quiet = ema_avg(run_folder, "-q", "-o", "b.safetensors")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert json.loads((run_folder.parent / "b.report.json").read_text())["command"]["config"]["path"] == used["path"]
    config.unlink()
    plain = ema_avg(run_folder, "--decay", "0.5", "--no-probe", "--buffers", "average", "-o", "c.safetensors")
    assert "options from" not in plain.stderr
    assert json.loads((run_folder.parent / "c.report.json").read_text())["command"]["config"] is None


def test_a_found_file_does_not_silence_its_own_line(run_folder: Path, ema_avg: Run) -> None:
    """``quiet`` of a file that nobody named hides everything but the line with the file."""
    (run_folder.parent / "ema-avg.toml").write_text('quiet = true\ndecay = 0.5\noutput = "a.safetensors"\n')
    done = ema_avg(run_folder)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("options from ")
    assert done.stderr.count("\n") == 1
    named = ema_avg(run_folder, "--config", "ema-avg.toml", "-o", "b.safetensors")
    assert (named.returncode, named.stderr) == (0, "")


def test_a_batch_names_its_file_once(run_folder: Path, ema_avg: Run) -> None:
    """One line for all runs; the index and every report have the file, with the options of that run."""
    (run_folder.parent / "ema-avg.toml").write_text("decay = 0.5\nno-probe = true\n")
    (run_folder.parent / "jobs.toml").write_text('[[job]]\nrun = "run"\noutput = "b.safetensors"\ndecay = 0.9\n')
    done = ema_avg("batch", "run", "--manifest", "jobs.toml", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("options from") == 1
    assert set(json.loads(done.stdout)["command"]["config"]["options"]) == {"no-probe", "decay"}
    report = json.loads((run_folder / "ema.report.json").read_text())["command"]["config"]
    assert set(report["options"]) == {"no-probe", "decay"}
    report = json.loads((run_folder.parent / "b.report.json").read_text())["command"]["config"]
    assert report["options"] == ["no-probe"]


def test_an_ignored_file_is_a_warning_of_the_run(run_folder: Path, ema_avg: Run) -> None:
    """It is printed once, also before an error that it explains, is in report and plan, and fails ``--strict``."""
    config = run_folder.parent / "ema-avg.toml"
    config.write_text("decay = 0.5\n")
    config.chmod(0o666)
    error = ema_avg(run_folder, "-o", "a.safetensors")
    assert error.returncode == 2
    assert error.stderr.index("config-ignored") < error.stderr.index("neither --decay")
    flags = ["--decay", "0.5", "--buffers", "average", "--no-probe", "-o", "a.safetensors"]
    strict = ema_avg(run_folder, *flags, "--strict")
    assert strict.returncode == 8
    assert "--allow config-ignored" in strict.stderr
    assert ema_avg("plan", run_folder, *flags, "--strict").returncode == 8
    done = ema_avg(run_folder, *flags, "--strict", "--allow", "config-ignored")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(str(config)) == 1
    report = json.loads((run_folder.parent / "a.report.json").read_text())
    assert [one["code"] for one in report["warnings"]] == ["config-ignored"]
    plan = ema_avg("plan", run_folder, *flags, "--json")
    codes = [one["code"] for one in json.loads(plan.stdout)["warnings"]]
    assert codes == ["config-ignored", "up-to-date"]
    assert ema_avg("plan", run_folder, *flags).stderr.count(str(config)) == 1
    shown = ema_avg("--show-config")
    assert shown.stdout.startswith("# the configuration file")
    assert len(json.loads(ema_avg("--show-config", "--json").stdout)["ignored"]) == 1
    batch = ema_avg("batch", run_folder, "--decay", "0.9", "--json")
    assert "config-ignored" in json.loads(batch.stdout)["jobs"][0]["warnings"]


def test_what_is_read_is_bounded(tmp_path: Path) -> None:
    """A sparse file of 2 GB and an endless device cost a megabyte, found or named; that much TOML is allowed."""
    huge = tmp_path / "pyproject.toml"
    with huge.open("wb") as file:
        file.truncate(2_000_000_000)
    tracemalloc.start()
    try:
        for read in (lambda: find_file(tmp_path), lambda: read_file(huge), lambda: read_toml(Path("/dev/zero"))):
            with pytest.raises(UsageError, match="larger than 1 MB"):
                read()
        assert tracemalloc.get_traced_memory()[1] < 10 * MOST_BYTES
    finally:
        tracemalloc.stop()
    allowed = tmp_path / "allowed.toml"
    allowed.write_text("#" * (MOST_BYTES - 10) + "\nevery = 2")
    assert allowed.stat().st_size == MOST_BYTES
    assert read_file(allowed).table == {"every": 2}
    allowed.write_text("#" * (MOST_BYTES - 9) + "\nevery = 2")
    with pytest.raises(UsageError, match="larger"):
        read_file(allowed)


def test_a_named_pipe_delivers_or_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell's ``<(...)`` may be slow; a pipe that nobody writes to, or not to its end, ends with an error."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("w") as file:
            file.write("every ")
            file.flush()
            time.sleep(0.1)
            file.write("= 2\n")

    writer = threading.Thread(target=write)
    writer.start()
    assert read_toml(pipe) == {"every": 2}
    writer.join()
    monkeypatch.setattr(toml_file, "PIPE_SECONDS", 0.1)
    with pytest.raises(UsageError, match="nothing was written"):
        read_toml(pipe)
    stalled = os.open(pipe, os.O_RDWR)
    os.write(stalled, b"every = 2\n")
    try:
        with pytest.raises(UsageError, match="nothing was written"):
            read_toml(pipe)
    finally:
        os.close(stalled)
    assert read_toml(Path("/dev/null")) == {}


def many(line: str) -> str:
    """Return as many lines as there may be; ``#`` is the number of the line."""
    return "".join(line.replace("#", str(number)) for number in range(MOST_BYTES // (len(line) + 6)))


def dotted(part: str, separator: str = ".") -> str:
    """Return a key of as many parts as there may be."""
    return separator.join([part] * ((MOST_BYTES - 10) // (len(part) + len(separator)))) + " = 1"


@pytest.mark.parametrize(
    "text",
    [
        dotted("a"),
        dotted('""'),
        dotted("''", " . "),
        dotted(r'"\""'),
        dotted(r'"\\"', "\t.\t"),
        f"[{dotted('a')[:-4]}]\n",
        f"[[{dotted('a')[:-4]}]]\n",
        "x = {" + dotted("a") + "}",
        "a = " + "[" * (MOST_BYTES - 4),
        "a = " + "{a = " * 100_000,
        "a = " + "9" * (MOST_BYTES - 4),
        '"' * MOST_BYTES,
        r"\"" * (MOST_BYTES // 2),
        '"' + r"\"" * 400_000,
        "a." + " " * (MOST_BYTES - 2),
    ],
    ids=lambda text: text[:12],
)
def test_hostile_toml_is_refused_at_once(text: str) -> None:
    """What would take hours, the whole stack or a huge number is an error after a moment."""
    started = time.process_time()
    with pytest.raises(UsageError):
        parse_toml(text, Path("c.toml"))
    assert time.process_time() - started < 3


def test_keys_of_thirty_parts_are_allowed() -> None:
    """Tables of other tools are nested; text with dots is no key."""
    key = ".".join("a" * 30)
    assert parse_toml(f"{key} = 1\n['b'.{key[2:]}]\n", Path("c.toml")).keys() == {"a", "b"}
    with pytest.raises(UsageError, match="more than 30 parts"):
        parse_toml(f"a.{key} = 1\n", Path("c.toml"))
    assert parse_toml('a = "1.5"\nb = [1.5, 2.5' + ", 3.5" * 50 + "]\n", Path("c.toml"))["a"] == "1.5"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (many("k# = 1\n"), "keys, more than there are options"),
        ("every = 0x" + "f" * 900_000, "a whole number"),
        ("decay = [0x" + "f" * 900_000 + "]", "a number"),
        ("unknown = 0x" + "f" * 900_000, "no option"),
        ("decay = [" + "0.5," * 200_000 + "]", "values, more than 1,000"),
        ('allow = "' + "a," * 400_000 + '"', "more than 100,000 characters"),
    ],
    ids=["keys", "integer", "integers", "unknown", "values", "text"],
)
def test_settings_without_bounds_are_refused_at_once(text: str, words: str) -> None:
    """A megabyte of settings is one short message."""
    started = time.process_time()
    with pytest.raises(UsageError, match=words) as refusal:
        from_table(parse_toml(text, Path("c.toml")), OPTIONS, Path("c.toml"))
    assert time.process_time() - started < 5
    assert len(refusal.value.message) < 500


def test_a_setting_of_a_named_file_is_free() -> None:
    """What is refused in a found file is an ordinary setting."""
    settings = from_table({"force": True, "output": "/x.safetensors"}, OPTIONS, Path("c.toml"))
    assert settings["force"] == Setting(value=True, origin="file", where="c.toml")
