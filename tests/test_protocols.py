"""Which URLs are opened: an explicit list of protocols, wherever a path is given."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import ema_cli
from ema_cli.discovery.patterns import matches
from ema_cli.errors import InputRefused, UsageError
from ema_cli.storage.locations import locate, locate_listed
from ema_cli.storage.protocols import PROTOCOLS, split_protocol
from ema_cli.storage.remote.stores import store_of
from ema_cli.storage.url import Url
from tests.helpers.canary import CANARY
from tests.helpers.program import Run, forked
from tests.helpers.series import random_states, write_series

STRANGE = (
    *("dir://x", "reference://x", "generic://x", "ftp://127.0.0.1/x", "sftp://h/x", "local:///etc/passwd", "data://x"),
    *("github://o:r@main/x", "git://x", "jupyter://h/x", "webhdfs://h/x", "smb://h/x", "DIR://x", "a+b.c-d://x"),
    *(
        "zip://x::file:///y",
        "tar://x::/y.tar",
        "simplecache::s3://b/x",
        "filecache::http://h/x",
        "blockcache::gs://b/x",
    ),
    *(
        "s3://b/x::file:///y",
        "https://h/x::memory",
        "https://[::1]/x::memory",
        "https://[::1]::file:///y",
        "cached::zip://a::http://h/x.zip",
        "memory2://x",
        "file::s3://x",
    ),
)
ADDRESS = "ftp://me:secret@127.0.0.1/x.safetensors"


@pytest.mark.parametrize("name", STRANGE)
def test_other_protocols_and_chains_are_refused(name: str) -> None:
    """The message lists the protocols that there are, and says how a local file of that name is written."""
    with CANARY.armed() as events, pytest.raises(UsageError) as refused:
        locate(name)
    assert not events
    assert "ema-avg does not open; it opens file://, http://, https://, s3://" in refused.value.message
    assert "./NAME" in refused.value.hint
    with pytest.raises(InputRefused):
        locate_listed(name, allow_remote=True)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("file:///abs/x.pt", "/abs/x.pt"),
        ("FILE:///abs/x.pt", "/abs/x.pt"),
        ("file://localhost/abs/x.pt", "/abs/x.pt"),
        ("file://run/x.pt", "run/x.pt"),
        ("file://localhost", "localhost"),
        ("file:///a%20b", "/a%20b"),
        ("file:relative", "file:relative"),
        ("file:/abs", "file:/abs"),
        ("./ftp://x", "./ftp://x"),
        ("/tmp/a::b://c", "/tmp/a::b://c"),
        ("ckpt::1.pt", "ckpt::1.pt"),
        ("x://y", "x://y"),
        ("C:\\run\\x.pt", "C:\\run\\x.pt"),
        ("\\\\host\\share\\x", "\\\\host\\share\\x"),
        ("//host/share/x", "//host/share/x"),
    ],
)
def test_these_are_local(name: str, path: str) -> None:
    """``file://`` is a local path, literally; so is everything without ``PROTOCOL://``. Nothing is decoded."""
    assert locate(name) == Path(path)


@pytest.mark.parametrize("protocol", [one for one in PROTOCOLS if one != "file"])
def test_protocols_may_be_in_capitals(protocol: str) -> None:
    """They mean the same in capitals, as in every URL; the rest of the name is as given."""
    for written in (protocol, protocol.upper(), protocol.title()):
        location = locate(f"{written}://Bucket/Run/x.pt")
        assert isinstance(location, Url)
        assert (location.scheme, location.address) == (protocol, f"{protocol}://Bucket/Run/x.pt")


@pytest.mark.parametrize(
    "url", ["http://[::1]/x.pt", "https://[fe80::1]:8443/a/x.pt?v=1", "http://me:pw@[2001:db8::]/x"]
)
def test_a_host_may_be_an_address_of_ipv6(url: str) -> None:
    """Its colons make no chain of URLs, and its brackets no pattern."""
    assert matches(url) == [locate(url)] == [Url(url)]


@pytest.mark.parametrize("url", [Url("ftp://h/x"), Url("dir://x"), Url("s3://b") / "/etc/passwd", Url("file:///x")])
def test_a_store_is_never_made_of_another_protocol(url: Url) -> None:
    """Also for a location that was not made of a name."""
    with pytest.raises(UsageError):
        store_of(url)


def test_the_check_takes_linear_time() -> None:
    """However long a name is."""
    for name in ("a" * 10**6, "a::" + "b" * 10**6, "a:" * 10**6):
        assert split_protocol(name) == ("", name)
    for name in ("dir://" + "x" * 10**6, "s3://" + "x" * 10**6, "http://" * 10**6, "a::" * 10**6 + "://"):
        with pytest.raises(UsageError) as refused:
            split_protocol(name)
        assert len(refused.value.message) < 1000


@pytest.mark.parametrize(
    "arguments",
    [
        (ADDRESS, "--decay", "0.5", "-o", "a.safetensors"),
        ("run", "--decay", "0.5", "-o", ADDRESS),
        ("run", "--decay", "0.5", "-o", "a.safetensors", "--report", "ftp://me:secret@127.0.0.1/a.html"),
        ("run", "-o", "a.safetensors", "--continue-from", ADDRESS),
        ("--method", "manual", "run/ckpt_100.pt:1", f"{ADDRESS}:2", "-o", "a.safetensors"),
        ("plan", "run", ADDRESS),
        ("inspect", ADDRESS),
        ("inspect", "ftp://me:secret@127.0.0.1/*.pt"),
        ("diff", "run/ckpt_100.pt", ADDRESS),
        ("diff", ADDRESS, "run/ckpt_100.pt"),
        ("verify", ADDRESS),
        ("verify", "old.safetensors", "--input", ADDRESS),
        ("batch", ADDRESS, "--decay", "0.5"),
        ("batch", "run", "--decay", "0.5", "-o", ADDRESS),
        ("batch", "run", "--decay", "0.5", "--index", "ftp://me:secret@127.0.0.1/a.json"),
        ("batch", "run", "--decay", "0.5", "--index", "s3://me:secret@127.0.0.1/a.json"),
        ("batch", "--decay", "0.5", "--manifest", "runs.toml"),
        ("batch", "--manifest", "outputs.toml"),
        ("run", "--decay", "0.5", "--config", "named.toml"),
    ],
    ids=lambda arguments: " ".join(arguments).replace(ADDRESS, "URL"),
)
def test_a_typed_protocol_is_a_usage_error_everywhere(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Exit 2, with the address but not its secret, and nothing is written."""
    paths = write_series(tmp_path / "run", random_states(2))
    ema_cli.average(paths, decay=0.5, output=tmp_path / "old.safetensors")
    (tmp_path / "runs.toml").write_text(f'[[job]]\nrun = "{ADDRESS}"\n')
    (tmp_path / "outputs.toml").write_text(f'[[job]]\nrun = "run"\ndecay = 0.5\noutput = "{ADDRESS}"\n')
    (tmp_path / "named.toml").write_text(f'output = "{ADDRESS}"\n')
    before = sorted(tmp_path.rglob("*"))
    done = forked(tmp_path)(*arguments)
    assert done.returncode == 2, done.stderr
    assert "127.0.0.1" in done.stderr
    assert "secret" not in done.stderr + done.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_a_protocol_in_the_environment_is_a_usage_error(run_folder: Path, ema_avg: Run) -> None:
    """As if it were typed."""
    done = ema_avg(run_folder, "--decay", "0.5", EMA_AVG_OUTPUT=ADDRESS)
    assert (done.returncode, "secret" in done.stderr) == (2, False)
    assert "ftp://" in done.stderr


def test_local_files_with_strange_names_are_read(tmp_path: Path, ema_avg: Run) -> None:
    """``./`` makes a local path of a name that looks like a URL, and matches of patterns are local."""
    states = random_states(2)
    for folder in ("s3:", "zip::"):
        write_series(tmp_path / folder, states)
        done = ema_avg("plan", f"./{folder}//*.pt", "--decay", "0.5")
        assert done.returncode == 0, done.stderr
    assert ema_avg("plan", "./zip::/ckpt_100.pt", "./zip::/ckpt_200.pt", "--decay", "0.5").returncode == 0


def test_the_library_for_azure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """No extra of this package has it, so the hint names the package."""
    monkeypatch.setitem(sys.modules, "adlfs", None)
    for protocol in ("az", "abfs", "abfss"):
        with pytest.raises(UsageError, match=f"{protocol}:// needs a library that is not installed") as refused:
            ema_cli.inspect(f"{protocol}://container/x.pt")
        assert refused.value.hint == "pip install adlfs"
