"""A web server with ranges: the requests to it, their number, and its faults."""

from __future__ import annotations

import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import ema_cli
from ema_cli.errors import EmaAvgError, InputChanged, InputRefused, NothingMatched, UsageError
from ema_cli.storage.locations import locate
from ema_cli.storage.remote import prefetch
from ema_cli.storage.remote.prefetch import Prefetcher
from ema_cli.storage.url import Url

pytest.importorskip("yarl")


@dataclass
class Site:
    """A folder on the web, and a log of the requests."""

    folder: Path
    address: str = ""
    ranges: list[tuple[str, int, int]] = field(default_factory=list)
    """Name, first byte and length of every part that was sent."""
    etag: str = '"one"'
    accepts: bool = True
    heeds: bool = True
    """Whether it answers with 412 if another entity tag is requested."""
    fail: Callable[[int], bool] = lambda _: False
    """Whether the n-th part is refused with 503."""
    cut: Callable[[int], bool] = lambda _: False
    """Whether the n-th part ends too early."""
    drop: Callable[[int], bool] = lambda _: False
    """Whether the connection is lost in the middle of the n-th part."""
    shift: Callable[[int], bool] = lambda _: False
    """Whether another part is sent in place of the n-th, which the server states."""
    whole: Callable[[int], bool] = lambda _: False
    """Whether the whole file is sent in place of the n-th part."""
    asked: int = 0
    meeting: threading.Barrier | None = None
    """Requests for the properties of a file wait for each other here."""


def handler(site: Site) -> type[BaseHTTPRequestHandler]:  # noqa: C901 - a class
    """Return the request handler of a site."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            if site.meeting is not None:
                site.meeting.wait()
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = site.folder / self.path.partition("?")[0].lstrip("/")
            if not path.is_file():
                self.reply(404, b"")
                return
            data = path.read_bytes()
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if found is None or not site.accepts:
                self.reply(200, data if body else b"", length=len(data))
                return
            site.asked += 1
            if site.fail(site.asked):
                self.reply(503, b"busy")
            elif site.heeds and self.headers.get("If-Match", site.etag) != site.etag:
                self.reply(412, b"")
            elif site.whole(site.asked):
                self.reply(200, data)
            else:
                self.reply_part(path.name, data, int(found[1]), min(int(found[2]), len(data) - 1))

        def reply_part(self, name: str, data: bytes, first: int, last: int) -> None:
            if site.shift(site.asked):
                first, last = first - 1, last - 1
            part = data[first : last + 1]
            site.ranges.append((name, first, len(part)))
            said = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            if site.drop(site.asked):
                self.reply(206, part[: len(part) // 2], len(part), said)
                self.close_connection = True
            else:
                self.reply(206, part[: len(part) // 2] if site.cut(site.asked) else part, None, said)

        def reply(
            self, status: int, data: bytes, length: int | None = None, said: Mapping[str, str] = MappingProxyType({})
        ) -> None:
            self.send_response(status)
            self.send_header("ETag", site.etag)
            for name, value in said.items():
                self.send_header(name, value)
            if site.accepts:
                self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data) if length is None else length))
            self.end_headers()
            self.wfile.write(data)

    return Handler


@pytest.fixture(autouse=True)
def no_retry_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once."""
    monkeypatch.setattr("ema_cli.storage.remote.retries.RETRY_DELAY_SECONDS", 0)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Four checkpoints on the web."""
    folder = tmp_path / "web"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        tensors = {f"w{n}": torch.randn(200, 1000, generator=generator) for n in range(3)}
        save_file({**tensors, "n": torch.tensor(step)}, folder / f"c_{step}.safetensors")
        torch.save({"model": tensors, "optimizer": {"m": torch.zeros(500_000)}}, folder / f"c_{step}.pt")
    found = Site(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(found))
    found.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


def names(site: Site, suffix: str) -> list[str]:
    """Return the addresses of the checkpoints."""
    return [f"{site.address}/c_{step}.{suffix}" for step in range(4)]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_each_needed_byte_is_sent_once(suffix: str, site: Site, tmp_path: Path) -> None:
    """The average is that of the files, and little more than the weights is transferred, in few requests."""
    ema_cli.average(
        [site.folder / Path(n).name for n in names(site, suffix)], decay=0.5, output=tmp_path / "a.safetensors"
    )
    ema_cli.plan(names(site, suffix), decay=0.5)
    planned = sum(length for *_, length in site.ranges)
    assert planned < 4 * 6 * (1 << 16)
    site.ranges.clear()
    ema_cli.average(names(site, suffix), decay=0.5, output=tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    needed = 4 * 3 * 200 * 1000 * 4
    sent = sum(length for *_, length in site.ranges)
    assert needed <= sent + 4 * (1 << 16)
    assert sent <= needed + planned + 1000  # plus the copied tensor
    assert len(site.ranges) <= 4 * (8 + 8)  # of the fold and of the sample before it


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_the_sample_is_a_few_small_requests(suffix: str, site: Site) -> None:
    """Beyond the structure, planning asks for at most six ranges of 4 KiB of each object, as they are in files."""
    ema_cli.plan(names(site, suffix), decay=0.5, probe=False)
    structure = list(site.ranges)
    site.ranges.clear()
    evidence = ema_cli.plan(names(site, suffix), decay=0.5).evidence
    sample = site.ranges
    for one in structure:
        sample.remove(one)
    assert evidence is not None
    assert evidence.elements == 6 * 1024
    assert all(length == 4096 for *_, length in sample)
    for step in range(4):
        assert sum(name == f"c_{step}.{suffix}" for name, *_ in sample) <= 6


def test_files_are_opened_several_at_a_time(site: Site) -> None:
    """All four are requested before any is answered; a file that cannot be opened has the same error as alone."""
    site.meeting = threading.Barrier(4, timeout=60)
    assert len(ema_cli.plan(names(site, "pt"), decay=0.5).checkpoints) == 4
    site.meeting = None
    (site.folder / "c_1.pt").write_bytes(b"no checkpoint")
    (site.folder / "c_2.pt").unlink()
    with pytest.raises(EmaAvgError, match=r"(?s)c_1\.pt.*c_2\.pt"):
        ema_cli.plan(names(site, "pt"), decay=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["transposed", "channels-last", "sliced"])
def test_strided_tensors_are_sent_once(layout: str, site: Site, tmp_path: Path) -> None:
    """A tensor with another order of elements is read in many pieces, which come from one copy of it."""
    generator = torch.Generator().manual_seed(1)
    for step in range(2):
        values = torch.randn(12, 32, 40, 40, generator=generator)
        views = {
            "transposed": values.view(384, 1600).t(),
            "channels-last": values.contiguous(memory_format=torch.channels_last),
            "sliced": values.view(384, 1600)[:, 100:1500],
        }
        torch.save({"a": views[layout], "b": torch.randn(5)}, site.folder / f"s_{step}.pt")
    near, far = ([f"{where}/s_{n}.pt" for n in (0, 1)] for where in (site.folder, site.address))
    for paths, output in ((near, "a.safetensors"), (far, "b.safetensors")):
        ema_cli.average(paths, decay=0.5, output=tmp_path / output, max_memory=1_000_000, threads=3)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    assert sum(length for *_, length in site.ranges) <= 2 * (12 * 32 * 1600 * 4 + 4 * (1 << 16))
    assert len(site.ranges) <= 2 * (8 + 8)


def test_constants_and_integers_of_a_web_server(site: Site, tmp_path: Path) -> None:
    """A plan compares integers with at most 2 reads of a file; a constant is sent twice, other weights once."""
    mask = torch.full((2000, 1000), -torch.inf).triu(1)
    integers = {f"ids{n}": torch.arange(30_000) for n in range(12)}
    for step in (1, 2):
        start, change = (torch.randn(500_000, generator=torch.Generator().manual_seed(seed)) for seed in (0, step))
        weights = {"w": start + 0.01 * change}
        save_file({"mask": mask, **weights, **integers}, site.folder / f"m_{step}.safetensors")
    addresses = [f"{site.address}/m_{step}.safetensors" for step in (1, 2)]
    assert ema_cli.plan(addresses, decay=0.5).warnings == ()
    assert len(site.ranges) <= 2 * (3 + 8)
    site.ranges.clear()
    ema_cli.average(addresses, decay=0.5, output=tmp_path / "ema.safetensors")
    assert load_file(tmp_path / "ema.safetensors")["mask"].equal(mask)
    averaged, copied = 4 * 500_000 + 2 * mask.nbytes, 12 * 8 * 30_000
    assert sum(length for _, _, length in site.ranges) <= 2 * averaged + copied + 2 * (1 << 20)


def sometimes(every: int) -> Callable[[int], bool]:
    """Return a function that is true for every n-th part, once the structures were read."""
    return lambda n: n > 8 and n % every == 0


@pytest.mark.parametrize("fault", ["fail", "cut", "drop", "shift", "whole"])
def test_what_passes_is_tried_again(fault: str, site: Site, tmp_path: Path) -> None:
    """A busy server, and wrong answers, cost time, not the result."""
    setattr(site, fault, sometimes(4))
    ema_cli.average(names(site, "safetensors"), method="uniform", output=tmp_path / "b.safetensors")
    expected = np.mean([load_file(site.folder / f"c_{n}.safetensors")["w1"].double().numpy() for n in range(4)], axis=0)
    assert np.array_equal(load_file(tmp_path / "b.safetensors")["w1"].numpy(), expected.astype(np.float32))
    assert site.asked > 12  # as many as without faults


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("cut", r"the server announced [\d,]+ instead of [\d,]+ bytes"),
        ("drop", "cannot be read at byte"),
        ("shift", r"the server sent bytes [\d,]+ to [\d,]+ instead of bytes"),
        ("whole", "the server sent the whole file instead of a range"),
    ],
)
def test_a_server_that_stays_wrong_is_refused(fault: str, said: str, site: Site, tmp_path: Path) -> None:
    """Bytes that were not requested are never used in place of the requested ones."""
    setattr(site, fault, lambda n: n > 9)
    with pytest.raises(InputChanged, match=said):
        ema_cli.average(names(site, "safetensors"), decay=0.5, output=tmp_path / "b.safetensors")
    assert not list(tmp_path.glob("*b.safetensors*"))


def test_a_server_that_stays_busy_is_reported(site: Site, tmp_path: Path) -> None:
    """After some tries the run ends with the reason, and leaves nothing."""
    site.fail = lambda n: n > 9
    with pytest.raises(EmaAvgError, match=r"cannot be (read at byte|reached).*503"):
        ema_cli.average(names(site, "safetensors"), decay=0.5, output=tmp_path / "b.safetensors")
    assert not list(tmp_path.glob("*b.safetensors*"))


@pytest.mark.parametrize("heeds", [True, False])
def test_an_object_that_changes_is_an_error(heeds: bool, site: Site, tmp_path: Path) -> None:
    """Another entity tag means another object, of whatever size, whether the server compares it or the run does."""

    def change(number: int) -> bool:
        site.etag = '"two"' if number > 9 else '"one"'
        return False

    site.heeds = heeds
    site.fail = change
    with pytest.raises(InputChanged, match="was changed while it was being read"):
        ema_cli.average(names(site, "safetensors"), decay=0.5, output=tmp_path / "b.safetensors")
    assert not list(tmp_path.glob("*b.safetensors*"))


@pytest.mark.parametrize("etag", ['"one"', 'W/"one"'])
def test_an_object_is_asked_for_again_only_without_proof(etag: str, site: Site, tmp_path: Path) -> None:
    """Answers with one strong entity tag are of one version; after others, one byte of each object is requested."""
    site.etag = etag
    ema_cli.average(names(site, "safetensors"), decay=0.5, output=tmp_path / "b.safetensors")
    assert [length for *_, length in site.ranges].count(1) == (0 if etag == '"one"' else 4)


def test_an_object_that_changed_after_its_last_byte_is_an_error_without_proof(site: Site, tmp_path: Path) -> None:
    """A weak entity tag does not prove that the parts are of one version."""
    site.etag = 'W/"one"'
    ema_cli.average(names(site, "safetensors"), decay=0.5, output=tmp_path / "a.safetensors")
    needed, site.asked = site.asked - 4, 0

    def change(number: int) -> bool:
        site.etag = 'W/"two"' if number > needed else 'W/"one"'
        return False

    site.fail = change
    with pytest.raises(InputChanged, match="was changed while it was being read"):
        ema_cli.average(names(site, "safetensors"), decay=0.5, output=tmp_path / "b.safetensors")


def test_the_structure_of_a_torch_file_is_two_requests(site: Site) -> None:
    """They are the beginning of the file and its end, whatever the number of tensors."""
    tensors = {f"w{n}": torch.randn(5000) for n in range(50)}
    for step in range(2):
        torch.save(tensors, site.folder / f"t_{step}.pt")
    ema_cli.plan([f"{site.address}/t_{step}.pt" for step in range(2)], decay=0.5, probe=False)
    assert len(site.ranges) == 4


def test_a_small_object_is_planned_with_one_request(site: Site, tmp_path: Path) -> None:
    """The request that opens it has all its bytes: samples and weights are taken from them."""
    names = [f"small_{step}.safetensors" for step in range(3)]
    for step, name in enumerate(names):
        save_file({f"w{n}": torch.full((700,), step + n / 7) for n in range(5)}, site.folder / name)
    addresses = [f"{site.address}/{name}" for name in names]
    ema_cli.plan(addresses, decay=0.5)
    assert sorted(name for name, *_ in site.ranges) == names
    site.ranges.clear()
    ema_cli.average(addresses, decay=0.5, output=tmp_path / "far.safetensors")
    assert sorted(name for name, *_ in site.ranges) == names
    ema_cli.average([site.folder / name for name in names], decay=0.5, output=tmp_path / "near.safetensors")
    assert (tmp_path / "far.safetensors").read_bytes() == (tmp_path / "near.safetensors").read_bytes()


def test_what_cannot_be_read_in_parts_is_refused(site: Site) -> None:
    """A server without ranges would send whole files for each part; a missing file is missing."""
    with pytest.raises(NothingMatched, match=r"there is no .*none\.pt"):
        ema_cli.plan([f"{site.address}/none.pt"], decay=0.5)
    site.accepts = False
    with pytest.raises(InputRefused, match="does not support byte ranges"):
        ema_cli.plan(names(site, "pt"), decay=0.5)
    with pytest.raises(UsageError, match="has a protocol that ema-avg does not open"):
        ema_cli.plan(["nonsense://a/b.pt"], decay=0.5)


def test_secrets_in_an_address_are_not_shown(site: Site) -> None:
    """A password or a signature is used, and appears nowhere."""
    address = names(site, "pt")[0].replace("http://", "http://me:secret@") + "?signature=hidden"
    location = locate(address)
    assert isinstance(location, Url)
    assert location.address == address
    assert "secret" not in str(location) + repr(location)
    assert "hidden" not in str(location)
    with pytest.raises(EmaAvgError) as raised:
        ema_cli.plan([address.replace("c_0", "c_9")], decay=0.5)
    site.fail = lambda _: True
    with pytest.raises(EmaAvgError) as busy:
        ema_cli.plan([address], decay=0.5)
    assert "503" in busy.value.message
    for message in (raised.value.message, busy.value.message):
        assert "secret" not in message
        assert "hidden" not in message


def test_local_runs_import_nothing_remote(tmp_path: Path) -> None:
    """Files on a disk need no fsspec."""
    for step in (1, 2):
        save_file({"w": torch.zeros(2)}, tmp_path / f"c_{step}.safetensors")
    code = (
        "import sys, ema_cli; ema_cli.average('.', decay=0.5, output='e.safetensors'); print('fsspec' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_announced_ranges_are_fetched_once() -> None:
    """Ranges that touch or overlap become one request; each byte is sent once, and is freed when it was taken."""
    data = bytes(range(256)) * 200
    fetched: list[tuple[int, int]] = []

    def fetch(begin: int, end: int) -> list[bytes]:
        fetched.append((begin, end))
        return pieces_of(data[begin:end], [10_000])

    prefetcher = Prefetcher(fetch)
    for begin in range(0, 40_000, 1000):
        prefetcher.announce(begin, begin + 1000)
    prefetcher.announce(500, 2500)
    for begin, length in ((0, 1500), (500, 2000), (1500, 38_500)):  # all within one part
        out = bytearray(length)
        assert prefetcher.take(begin, memoryview(out)) == length
        assert out == data[begin : begin + length]
    assert fetched == [(0, 40_000)]
    assert prefetcher.take(0, memoryview(bytearray(1))) == 0


@given(st.data())
def test_every_byte_comes_out_as_it_is(data: st.DataObject) -> None:
    """In whatever order ranges are announced and taken, bytes are right or absent, and none is in memory in the end."""
    size = 700_000
    content = np.random.default_rng(0).bytes(size)
    sizes = data.draw(st.lists(st.integers(5_000, 400_000), min_size=1, max_size=3))
    prefetcher = Prefetcher(lambda begin, end: pieces_of(content[begin:end], sizes))
    spans = st.tuples(st.integers(0, size - 1), st.integers(1, 300_000)).map(lambda s: (s[0], min(size, sum(s))))
    announced = data.draw(st.lists(spans, max_size=6))
    for begin, end in announced:
        prefetcher.announce(begin, end)
    for begin, end in data.draw(st.permutations(announced)):
        done = begin
        while done < end:
            out = bytearray(end - done)
            taken = prefetcher.take(done, memoryview(out))
            assert out[:taken] == content[done : done + taken]
            assert taken > 0
            done += taken
    assert bytes_in_memory(prefetcher) == 0
    prefetcher.close()


def test_bytes_taken_from_a_request_are_freed() -> None:
    """A request is freed piece by piece, not when all of it was taken."""
    prefetcher = Prefetcher(lambda begin, end: pieces_of(bytes(end - begin), [1 << 17]))
    prefetcher.announce(0, 1 << 20)
    done = 0
    while done < 1 << 19:
        done += prefetcher.take(done, memoryview(bytearray((1 << 19) - done)))
    assert bytes_in_memory(prefetcher) == 1 << 19


def pieces_of(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Return bytes in pieces of these sizes, in turn."""
    pieces, begin, turn = [], 0, cycle(sizes)
    while begin < len(data):
        size = next(turn)
        pieces.append(data[begin : begin + size])
        begin += size
    return pieces


def test_a_needed_request_sends_those_of_all_other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was announced of the others is fetched at the same time, as it is needed next; but no more than fits."""
    fetched = queue.SimpleQueue[int]()

    def make(number: int) -> Prefetcher:
        def fetch(begin: int, end: int) -> list[bytes]:
            fetched.put(number)
            return [bytes(end - begin)]

        return Prefetcher(fetch)

    held = prefetch._TOTAL.nbytes
    for limit, sent in ((1 << 20, [0, 1, 2, 3, 4]), (4000, [0, 1, 2])):
        monkeypatch.setattr(prefetch, "_MOST_BYTES", held + limit)
        prefetchers = [make(number) for number in range(5)]
        for prefetcher in prefetchers:
            prefetcher.announce(0, 1000)
            prefetcher.announce(1000, 3000)
        assert fetched.empty()
        assert prefetchers[2].take(0, memoryview(bytearray(100))) == 100
        assert sorted(fetched.get(timeout=60) for _ in sent) == sent
        assert prefetch._TOTAL.nbytes == held + 3000 * len(sent)
        for prefetcher in prefetchers:
            prefetcher.close()
        assert prefetch._TOTAL.nbytes == held
    assert fetched.empty()


def test_small_requests_do_not_wait_for_each_other() -> None:
    """More of them than of large ones are sent before any is answered, and large ones do not hold them up."""
    meeting = threading.Barrier(prefetch.SMALL_REQUESTS + prefetch.LARGE_REQUESTS, timeout=60)

    def fetch(begin: int, end: int) -> list[bytes]:
        meeting.wait()
        return [bytes(end - begin)]

    lengths = [1 << 20] * prefetch.LARGE_REQUESTS + [4096] * prefetch.SMALL_REQUESTS
    prefetchers = [Prefetcher(fetch) for _ in lengths]
    for prefetcher, length in zip(prefetchers, lengths, strict=True):
        prefetcher.announce(0, length)
    for prefetcher, length in zip(prefetchers, lengths, strict=True):
        assert prefetcher.take(0, memoryview(bytearray(length))) == length


def bytes_in_memory(prefetcher: Prefetcher) -> int:
    """Return the number of bytes that were fetched and not freed."""
    futures = [chunk.future for chunk in prefetcher._requests if chunk.future is not None]
    return sum(len(piece) for future in futures for piece in future.result().pieces)
