"""``--force``: our own files and the file that -o names are replaced, files of others kept, permissions not widened."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ema_cli
import ema_cli.write.folder
import ema_cli.write.old_folder
from ema_cli.errors import OutputError
from ema_cli.verification.checks import verify
from ema_cli.write.permissions import Permissions
from tests.helpers.folders import model_folders
from tests.helpers.outputs import listing
from tests.helpers.program import Run
from tests.helpers.series import random_states, write_series

SIZE = 1_500
"""Bytes of a shard: the states of these tests need several."""
MINE = {"README.md": b"a model card", ".gitattributes": b"* lfs", "events.log": b"", "pytorch_model.bin": b"x" * 99}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two checkpoint folders with side files."""
    torch.manual_seed(0)
    return model_folders(tmp_path / "run", [{f"w{k}": torch.randn(100) for k in range(12)} for _ in range(2)])


def write(folders: list[Path], out: Path, decay: float = 0.5, *, force: bool = True, **options: Any) -> Any:
    """Average into a folder of several shards."""
    given = {"max_shard_size": SIZE, "threads": 1, **options}
    return ema_cli.average(folders, decay=decay, output=out, force=force, **given)


def add_mine(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Put the user's files into a folder, with their modes; return contents, modes and times."""
    for name, content in MINE.items():
        (folder / name).write_bytes(content)
    (folder / "README.md").chmod(0o640)
    (folder / "events.log").chmod(0o444)
    os.utime(folder / "README.md", ns=(1_000_000_001, 2_000_000_002))
    return state_of_mine(folder)


def state_of_mine(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Return contents, modes and times of the user's files."""
    return {
        name: (
            (folder / name).read_bytes(),
            stat.S_IMODE((folder / name).stat().st_mode),
            (folder / name).stat().st_mtime_ns,
        )
        for name in MINE
    }


def hidden(folder: Path) -> list[str]:
    """Return the hidden names in a folder."""
    return sorted(name for name in listing(folder) if name.startswith("."))


def modes(folder: Path) -> dict[str, int]:
    """Return the permissions of the files in a folder."""
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def cannot_link(*_: object, **__: object) -> None:
    """Fail as a file system without hard links does."""
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture(params=["link, exchange", "link, rename", "copy, exchange", "copy, rename"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Keep files by links or copies, and replace folders by one call or two."""
    way: str = request.param
    if way.startswith("copy"):
        monkeypatch.setattr("os.link", cannot_link)
    if way.endswith("rename"):
        monkeypatch.setattr("ema_cli.write.folder.exchange", lambda *_: False)
    return way


def test_files_of_others_are_kept(way: str, folders: list[Path], tmp_path: Path) -> None:
    """With contents, modes and times; a linked file stays the same file. Everything listed is replaced or goes."""
    out = tmp_path / "out"
    first = {file.name for file in write(folders, out).averages[0].output.files}
    mine = add_mine(out)
    inode = (out / "README.md").stat().st_ino
    second = {file.name for file in write(folders, out, 0.9, max_shard_size=2_500).averages[0].output.files}
    assert first - second
    assert listing(out) == second | set(MINE)
    assert state_of_mine(out) == mine
    assert ((out / "README.md").stat().st_ino == inode) == way.startswith("link")
    assert (out / "README.md").stat().st_nlink == 1
    assert verify(out).ok
    assert not hidden(tmp_path)
    assert write(folders, out, 0.9, max_shard_size=2_500, force=False).averages[0].output.sha256  # up to date


def fifo(path: Path) -> None:
    """Make a named pipe."""
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    """Make a socket."""
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.mkdir, 'the folder "x"'),
        (lambda path: path.symlink_to("/etc/passwd"), 'the link "x"'),
        (lambda path: path.symlink_to("model.safetensors"), 'the link "x"'),
        (lambda path: path.symlink_to("nowhere"), 'the link "x"'),
        (fifo, 'the FIFO "x"'),
        (unix_socket, 'the socket "x"'),
    ],
    ids=["folder", "link", "link inside", "broken link", "fifo", "socket"],
)
@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_file_is_refused_by_name(
    force: bool, make: Callable[[Path], None], message: str, folders: list[Path], tmp_path: Path
) -> None:
    """Before the work, in a run and in its plan; without --force the error does not propose --force."""
    out = tmp_path / "out"
    write(folders, out)
    make(out / "x")
    before = listing(out)
    with pytest.raises(OutputError, match=rf'out" cannot be replaced: it contains {message}') as refused:
        write(folders, out, 0.9, force=force)
    assert "--force" not in refused.value.hint
    plan = ema_cli.plan(folders, decay=0.9, output=out, max_shard_size=SIZE, force=force)
    assert [one.message for one in plan.warnings if one.code == "output-in-the-way"] == [refused.value.message]
    assert listing(out) == before
    assert not hidden(tmp_path)


def test_an_output_that_is_up_to_date_may_hold_folders(folders: list[Path], tmp_path: Path) -> None:
    """Nothing is replaced then."""
    write(folders, tmp_path / "out")
    (tmp_path / "out" / "notes").mkdir()
    write(folders, tmp_path / "out", force=False)
    assert "notes" in listing(tmp_path / "out")


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"])
def test_a_foreign_file_with_the_name_of_a_new_one_is_refused(name: str, folders: list[Path], tmp_path: Path) -> None:
    """It is neither lost nor put in the place of the new file."""
    out = tmp_path / "out"
    write(write_series(tmp_path / "plain", random_states(2)), out, max_shard_size=10**9)
    (out / name).write_bytes(b"mine")
    with pytest.raises(OutputError, match=f'"{name}", which its report does not list'):
        write(folders, out, 0.9, max_shard_size=2_500)
    assert (out / name).read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["model.safetensors", "adapter.safetensors", "x.safetensors.index.json"])
@pytest.mark.parametrize("force", [False, True])
def test_foreign_weights_are_refused(force: bool, name: str, folders: list[Path], tmp_path: Path) -> None:
    """A library could load them instead of the average beside them; with them it is another output."""
    out = tmp_path / "out"
    write(folders, out)
    (out / name).write_bytes(b"mine")
    with pytest.raises(OutputError, match=f'contains "{name}", weights that its report does not list'):
        write(folders, out, 0.9, force=force)
    assert (out / name).read_bytes() == b"mine"


@pytest.mark.parametrize("report", ["none", "damaged", "of another folder", "of a file", "that lists nothing there"])
@pytest.mark.parametrize("force", [False, True])
def test_a_folder_without_our_report_is_refused(report: str, force: bool, folders: list[Path], tmp_path: Path) -> None:
    """With the list of its files; nothing in it is touched."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("thesis")
    (tmp_path / "mine" / "id_rsa").write_text("key")
    beside = tmp_path / "mine.report.json"
    if report == "damaged":
        beside.write_text('{"schema_version": ')
    elif report == "of a file":
        write_series(tmp_path / "series", random_states(2))
        ema_cli.average(tmp_path / "series", decay=0.5, output=tmp_path / "a.safetensors")
        shutil.move(tmp_path / "a.report.json", beside)
    elif report != "none":
        write(folders, tmp_path / "other")
        shutil.move(tmp_path / "other.report.json", beside)
    with pytest.raises(OutputError, match=r'is not replaced: it contains "id_rsa", "thesis\.txt"') as refused:
        write(folders, tmp_path / "mine", force=force)
    assert "--force" not in refused.value.hint
    assert {path.name: path.read_text() for path in (tmp_path / "mine").iterdir()} == {
        "thesis.txt": "thesis",
        "id_rsa": "key",
    }


@pytest.mark.parametrize("forged", [False, True])
def test_a_report_alone_does_not_make_a_folder_ours(*, forged: bool, folders: list[Path], tmp_path: Path) -> None:
    """Side files are equal in all checkpoints of a model, and a report may be forged: the weights must be ours."""
    out = tmp_path / "out"
    write(folders, out)
    shutil.rmtree(out)
    shutil.copytree(folders[0], out)
    report = tmp_path / "out.report.json"
    if forged:
        document = json.loads(report.read_text())
        (listed, *_) = document["averages"][0]["output"]["files"]
        document["averages"][0]["output"]["files"] = [
            {**listed, "name": path.name, "bytes": path.stat().st_size} for path in sorted(out.iterdir())
        ]
        report.write_text(json.dumps(document))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(OutputError, match="describes other files, and is not replaced"):
        write(folders, out, decay=0.25)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_mount_point_is_refused_before_the_work(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system cannot rename it, so no folder takes its place; a folder inside it is written."""
    out = tmp_path / "mounted"
    out.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == out)
    with pytest.raises(OutputError, match="it is a mount point") as refused:
        write(folders, out)
    assert refused.value.hint == "choose a folder inside it with output"
    assert not listing(out)
    write(folders, out / "ema")
    assert verify(out / "ema").ok


def test_a_listed_file_that_was_edited_is_replaced_with_force_alone(folders: list[Path], tmp_path: Path) -> None:
    """Its name is one that -o means, as that of a file is."""
    out = tmp_path / "out"
    write(folders, out)
    (out / "config.json").write_text("edited")
    with pytest.raises(OutputError, match="changed after it was written"):
        write(folders, out, force=False)
    write(folders, out)
    assert (out / "config.json").read_bytes() == (folders[-1] / "config.json").read_bytes()


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_a_file_output_replaces_files_alone(kind: str, tmp_path: Path) -> None:
    """A regular file of anybody is replaced; a link, a folder or a device of that name never."""
    paths = write_series(tmp_path / "run", random_states(2))
    place, aim = tmp_path / "ema.safetensors", tmp_path / "aim"
    aim.write_text("mine")
    make: dict[str, Callable[[], None]] = {
        "link": lambda: place.symlink_to(aim),
        "folder": place.mkdir,
        "fifo": lambda: os.mkfifo(place),
    }
    make[kind]()
    with pytest.raises(OutputError, match=f"it is a {kind}|it is a FIFO"):
        ema_cli.average(paths, decay=0.5, output=place, force=True)
    assert aim.read_text() == "mine"
    place.rmdir() if kind == "folder" else place.unlink()
    place.write_text("of another program")
    with pytest.raises(OutputError, match="already exists"):
        ema_cli.average(paths, decay=0.5, output=place)
    ema_cli.average(paths, decay=0.5, output=place, force=True)
    assert verify(place).ok


def test_a_foreign_file_in_the_place_of_the_report_is_kept(tmp_path: Path) -> None:
    """``--force`` means the file that -o names, and ``--report`` its file. What is no JSON may have been a report."""
    paths = write_series(tmp_path / "run", random_states(2))
    beside, named = tmp_path / "ema.report.json", tmp_path / "page.html"
    for path in (beside, named):
        path.write_text('{"my": "own"}')
    options: Any = {"decay": 0.5, "output": tmp_path / "ema.safetensors", "report": named}
    for force in (False, True):
        with pytest.raises(OutputError, match=r'ema\.report\.json" exists and is not a report'):
            ema_cli.average(paths, force=force, **options)
    assert beside.read_text() == '{"my": "own"}'
    beside.write_text('{"schema_version": ')
    with pytest.raises(OutputError, match=r'ema\.report\.json" exists and is not a report'):
        ema_cli.average(paths, **options)
    beside.unlink()
    with pytest.raises(OutputError, match=r'page\.html" exists and is not a report'):
        ema_cli.average(paths, **options)
    beside.write_text("")
    ema_cli.average(paths, force=True, **options)
    assert verify(tmp_path / "ema.safetensors").ok


def test_force_never_takes_the_report_of_another_output(folders: list[Path], tmp_path: Path) -> None:
    """Without it, a folder could never be replaced again."""
    write(folders, tmp_path / "a")
    with pytest.raises(OutputError, match=r'"a\.report\.json" is the report of'):
        ema_cli.average(folders, decay=0.5, output=tmp_path / "a.safetensors", force=True)
    assert verify(tmp_path / "a").ok


@pytest.fixture
def umask() -> Iterator[None]:
    """Make new files readable by everybody, whatever the user's umask is."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400, 0o444, 0o666, 0o4755])
@pytest.mark.parametrize("options", [{}, {"resume": True}], ids=["plain", "resume"])
def test_a_replaced_file_keeps_its_permissions(mode: int, options: dict[str, Any], tmp_path: Path) -> None:
    """The output, its report and a page; the umask decides only about new files, and set-user-ID is not copied."""
    paths = write_series(tmp_path / "run", random_states(2))
    page = tmp_path / "page.html"
    given: Any = {"output": tmp_path / "ema.safetensors", "report": page, **options}
    ema_cli.average(paths, decay=0.5, **given)
    names = ("ema.safetensors", "ema.report.json", "page.html")
    assert {modes(tmp_path)[name] for name in names} == {0o644}
    for name in names:
        (tmp_path / name).chmod(mode)
    ema_cli.average(paths, decay=0.9, force=True, **given)
    assert {modes(tmp_path)[name] for name in names} == {mode & 0o777}


@pytest.mark.usefixtures("umask")
def test_a_replaced_folder_keeps_its_permissions(way: str, folders: list[Path], tmp_path: Path) -> None:
    """Each file that of its name; a file with a new name is permitted no more than all replaced ones were."""
    out = tmp_path / "out"
    write(folders, out)
    assert set(modes(out).values()) == {0o644}
    out.chmod(0o700)
    for path in out.iterdir():
        path.chmod(0o640)
    (out / "config.json").chmod(0o600)
    (out / "tokenizer.json").chmod(0o666)
    write(folders, out, 0.9, max_shard_size=2_500)
    found = modes(out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert (found.pop("config.json"), found.pop("tokenizer.json")) == (0o600, 0o666)
    assert found.pop("model.safetensors.index.json") == 0o640
    assert set(found.values()) == {0o600}, way


@pytest.mark.usefixtures("umask")
def test_an_empty_folder_keeps_its_permissions(folders: list[Path], tmp_path: Path) -> None:
    """A folder that was made private before the run stays private."""
    (tmp_path / "out").mkdir(mode=0o700)
    write(folders, tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


@pytest.mark.usefixtures("umask")
def test_the_index_of_a_batch_keeps_its_permissions(tmp_path: Path, ema_avg: Run) -> None:
    """It lists paths, and may be private, too."""
    write_series(tmp_path / "run", random_states(2))
    job = ("batch", "run", "-o", "{run}/ema.safetensors", "--index", "index.html", "--force")
    for decay in ("0.5", "0.9"):
        assert ema_avg(*job, "--decay", decay).returncode == 0
        (tmp_path / "index.html").chmod(0o600)
    assert modes(tmp_path)["index.html"] == 0o600


@pytest.mark.usefixtures("umask")
def test_nobody_else_can_read_it_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its first moment on, the file that replaces a private one is private."""
    paths = write_series(tmp_path / "run", random_states(2))
    output = tmp_path / "ema.safetensors"
    ema_cli.average(paths, decay=0.5, output=output)
    for path in (output, tmp_path / "ema.report.json"):
        path.chmod(0o600)
    seen: dict[str, int] = {}
    original = os.open

    def noting(name: Any, *arguments: Any, **options: Any) -> int:
        descriptor = original(name, *arguments, **options)
        if str(name).endswith((".partial", ".journal")):
            seen[Path(str(name)).name.split(".")[-1]] = stat.S_IMODE(os.fstat(descriptor).st_mode)
        return descriptor

    monkeypatch.setattr(os, "open", noting)
    ema_cli.average(paths, decay=0.9, output=output, force=True, resume=True)
    assert seen == {"partial": 0o600, "journal": 0o600}


@pytest.mark.parametrize(
    ("mode", "kept"), [(0o640, 0o600), (0o644, 0o644), (0o664, 0o644), (0o660, 0o600), (0o604, 0o600)]
)
def test_a_group_that_cannot_be_kept_gets_no_more(
    mode: int, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new group had the permissions of others before, and those of the old group are others now."""
    path = tmp_path / "file"
    path.write_text("")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchown", refuse)
    with path.open() as file:
        Permissions(mode=mode, group=path.stat().st_gid + 1).set_on(file.fileno())
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == kept
        Permissions(mode=mode, group=path.stat().st_gid).set_on(file.fileno())
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == mode


def interfere(monkeypatch: pytest.MonkeyPatch, way: str, act: Callable[[], object]) -> None:
    """Let another program act right before the folders change their names, after all checks."""
    if way.endswith("exchange"):
        original = ema_cli.write.folder.exchange

        def exchanging(one: Path, other: Path) -> bool:
            monkeypatch.setattr("ema_cli.write.folder.exchange", original)
            act()
            return original(one, other)

        monkeypatch.setattr("ema_cli.write.folder.exchange", exchanging)
    else:
        monkeypatch.setattr("ema_cli.write.folder.exchange", lambda *_: act() and False)


@pytest.mark.parametrize("action", ["add", "edit", "replace", "edit listed", "remove", "folder"])
def test_what_changes_at_the_last_moment_is_not_lost(
    action: str, way: str, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old folder gets its name back, with the change; only an edit of a linked file needs nothing."""
    out = tmp_path / "out"
    write(folders, out)
    add_mine(out)
    listed = {path.name: path.read_bytes() for path in out.iterdir()}

    def act() -> None:
        match action:
            case "add":
                (out / "new.txt").write_text("new")
            case "edit":
                (out / "README.md").write_text("edited card")
            case "replace":
                (tmp_path / "x").write_text("another card")
                (tmp_path / "x").replace(out / "README.md")
            case "edit listed":
                (out / "config.json").write_text("edited configuration")
            case "remove":
                (out / "README.md").unlink()
            case "folder":
                (out / "new").mkdir()

    interfere(monkeypatch, way, act)
    if action == "edit" and way.startswith("link"):
        write(folders, out, 0.9)
        assert (out / "README.md").read_text() == "edited card"
        assert verify(out).ok
    else:
        with pytest.raises(OutputError, match="by another program during the run"):
            write(folders, out, 0.9)
        act_again = {"add": "new.txt", "edit": "README.md", "replace": "README.md", "edit listed": "config.json"}
        found = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        changed = {name for name in {*found, *listed} if found.get(name) != listed.get(name)}
        assert changed == {act_again.get(action, "README.md")} - ({"README.md"} if action == "folder" else set())
        assert (out / "new").is_dir() == (action == "folder")
    assert not hidden(tmp_path)


def test_what_appears_in_the_old_folder_afterwards_gets_a_visible_name(
    way: str, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that works inside the old folder writes there after it lost its name: nothing removes that file."""
    out = tmp_path / "out"
    write(folders, out)
    original = ema_cli.write.old_folder.OldFolder.remove

    def late(old: Any, folder: Path) -> None:
        (folder / "late.txt").write_text("late")
        original(old, folder)

    monkeypatch.setattr(ema_cli.write.old_folder.OldFolder, "remove", late)
    write(folders, out, 0.9)
    monkeypatch.undo()
    write(folders, out, 0.95)
    (left,) = (path for path in tmp_path.iterdir() if path.name.endswith(".kept"))
    assert {path.name: path.read_text() for path in left.iterdir()} == {"late.txt": "late"}, way
    assert not hidden(tmp_path)


def test_a_file_that_cannot_be_kept_ends_the_run_before_the_work(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it may be neither linked nor read, as a file of another user."""
    out = tmp_path / "out"
    write(folders, out)
    mine = add_mine(out)
    monkeypatch.setattr("ema_cli.write.old_folder._link_or_copy", cannot_link)
    with pytest.raises(OutputError, match=r'its file "\.gitattributes" cannot be kept: Operation not permitted'):
        write(folders, out, 0.9)
    assert state_of_mine(out) == mine
    assert verify(out).ok
    assert not hidden(tmp_path)


def test_an_unreadable_file_of_another_user_is_refused_by_plan_and_run(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system lets only its owner link it; nothing has been folded by then."""
    out = tmp_path / "out"
    write(folders, out)
    (out / "README.md").write_text("of another user")
    monkeypatch.setattr("os.geteuid", lambda: -1)
    monkeypatch.setattr("os.access", lambda path, *_, **__: not str(path).endswith("README.md"))
    message = '"README.md", a file of another user that cannot be read'
    with pytest.raises(OutputError, match=message):
        write(folders, out, 0.9)
    plan = ema_cli.plan(folders, decay=0.9, output=out, max_shard_size=SIZE, force=True)
    assert any(message in one.message for one in plan.warnings)


def die_at(call: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process die as if killed, in the ``number``-th call of a system function on the output."""
    calls: list[int] = []

    def on_output(argument: object) -> bool:
        name = str(Path(f"/proc/self/fd/{argument}").readlink() if isinstance(argument, int) else argument)
        return ".out." in name or name.endswith(("/out", "/out.report.json"))

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            names = arguments[: 1 + (call in ("link", "rename", "replace", "exchange"))]
            calls.extend([1] * any(map(on_output, names)))
            if len(calls) == number:
                os._exit(77)
            return original(*arguments, **options)

        return called

    name = "ema_cli.write.folder.exchange" if call == "exchange" else f"os.{call}"
    monkeypatch.setattr(name, dying(ema_cli.write.folder.exchange if call == "exchange" else getattr(os, call)))


def in_child(work: Callable[[], object]) -> int:
    """Do something in a copy of this process; return its exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


CALLS = ("link", "rename", "replace", "unlink", "rmdir", "mkdir", "open", "fsync", "chmod", "fchmod", "exchange")


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_killed_at_any_call_no_file_is_lost_or_doubled(
    call: str, way: str, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each call on the folder: the next run has all files of others, once, and the right output."""
    out, first = tmp_path / "out", tmp_path / "first"
    write(folders, first)
    mine = add_mine(first)
    for number in range(1, 60):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(first, out)
        shutil.copy2(tmp_path / "first.report.json", tmp_path / "out.report.json")

        def dying_run(number: int = number) -> None:
            die_at(call, number, monkeypatch)
            write(folders, out, 0.9, max_shard_size=2_500)

        status = in_child(dying_run)
        assert status in (0, 77), way
        write(folders, out, 0.95, max_shard_size=850)
        assert state_of_mine(out) == mine
        files = json.loads((tmp_path / "out.report.json").read_text())["averages"][0]["output"]["files"]
        assert listing(out) == {file["name"] for file in files} | set(MINE)
        assert listing(tmp_path) == {"run", "first", "first.report.json", "out", "out.report.json"}
        if status == 0:
            return
    pytest.fail("the run never ended")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_before_the_report_has_its_name_the_next_run_gives_it(
    kind: str, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output is then up to date, and verified; without that, the report of the old output would describe it."""
    out = tmp_path / ("out" if kind == "folder" else "out.safetensors")
    options: Any = {"max_shard_size": 2_500} if kind == "folder" else {"max_shard_size": None}
    write(folders, out, **{**options, **({"max_shard_size": SIZE} if kind == "folder" else {})})

    def dying_run() -> None:
        original = os.replace

        def replace(source: Any, place: Any, **how: Any) -> None:
            if str(place).endswith("report.json"):
                os._exit(77)
            original(source, place, **how)

        monkeypatch.setattr(os, "replace", replace)
        write(folders, out, 0.9, **options)

    assert in_child(dying_run) == 77
    assert not verify(out).ok
    plan = ema_cli.plan(folders, decay=0.9, output=out, **options)
    assert "output-in-the-way" in {one.code for one in plan.warnings}  # a plan changes nothing
    before = out.stat().st_ino
    write(folders, out, 0.9, force=False, **options)
    assert out.stat().st_ino == before
    assert verify(out).ok
    assert not hidden(tmp_path)
