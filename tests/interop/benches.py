"""The three stores on the loopback, each behind a hostile proxy, with one small run in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.series import write_series
from tests.interop import gcs, hub, store
from tests.interop.hostile_proxy import Asked, HostileProxy, Mode
from tests.interop.judge import states_of

_ELEMENTS = 100_000
"""Of a checkpoint: 0.4 MB."""


@dataclass(kw_only=True)
class Bench:
    """A store with a run of two checkpoints."""

    name: str
    proxy: HostileProxy
    run: str
    """The URL of the run."""
    out: str
    """The URL of a folder that does not exist."""
    environment: dict[str, str]
    """For ema-avg."""
    names: Callable[[], set[str]]
    """Returns the objects of the store."""
    unfinished: Callable[[], int]
    """Returns the number of uploads that were begun, and neither finished nor aborted."""
    get: Callable[[str], bytes]
    pages: Mode
    """Answers a listing with pages without an end."""
    stages: dict[str, Callable[[Asked], bool]]
    """The requests of an upload by their purpose."""
    close: Callable[[], None]

    @staticmethod
    def data(asked: Asked) -> bool:
        """Whether a request is for the bytes of a checkpoint."""
        return asked.method == "GET" and asked.range is not None and "/resolve/" not in asked.path

    def listing(self, asked: Asked) -> bool:
        """Whether a request is for the names in a folder or the description of an object."""
        return asked.method in ("GET", "HEAD", "POST") and asked.range is None and "upload" not in asked.path.lower()


def _asks(method: str, word: str, content_range: str = "") -> Callable[[Asked], bool]:
    """Return whether a request has a method, a word in its address, and one at the end of its Content-Range."""

    def is_one(asked: Asked) -> bool:
        sent = asked.headers.get("Content-Range", "")
        return asked.method == method and word in asked.path and sent.endswith(content_range)

    return is_one


_S3_STAGES = {
    "begin": _asks("POST", "?uploads"),
    "part": _asks("PUT", "partNumber="),
    "complete": _asks("POST", "uploadId="),
    "abort": _asks("DELETE", "uploadId="),
    "check": _asks("HEAD", "/ema.safetensors"),
}
_GOOGLE_STAGES = {
    "begin": lambda asked: _asks("POST", "uploadType=resumable")(asked) and "upload_id" not in asked.path,
    "part": _asks("POST", "upload_id=", "/*"),
    "complete": lambda asked: _asks("POST", "upload_id=")(asked) and not asked.headers["Content-Range"].endswith("*"),
    "abort": _asks("DELETE", "upload_id="),
    "check": _asks("GET", "ema.safetensors"),
}
_HUB_STAGES = {
    "begin": _asks("POST", "/preupload/"),
    "part": _asks("PUT", "/lfs/"),
    "complete": _asks("POST", "/commit/"),
    "check": _asks("GET", "/tree/"),
}


_PAGE = 1000
"""Names on a page of a listing."""


def _page(asked: Asked, body: bytes, content_type: str, **headers: str) -> None:
    asked.read()
    asked.begin(200, [], content_type=content_type, content_length=str(len(body)), **headers)
    asked.send(body)


def _s3_pages(asked: Asked) -> None:
    if "list-type" not in asked.path:
        asked.begin(404, [], content_length="0")
        return
    number = time.monotonic_ns()
    keys = "".join(
        f"<Contents><Key>run/{number + n}.pt</Key><LastModified>2026-01-01T00:00:00Z</LastModified><ETag>e</ETag>"
        f"<Size>9</Size></Contents>"
        for n in range(_PAGE)
    )
    head = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{number}</NextContinuationToken>"
    _page(asked, f"<ListBucketResult>{head}{keys}</ListBucketResult>".encode(), "application/xml")


def _google_pages(asked: Asked) -> None:
    number = time.monotonic_ns()
    items = [{"name": f"run/{number + n}.pt", "bucket": gcs.BUCKET, "size": "9"} for n in range(_PAGE)]
    _page(asked, json.dumps({"items": items, "nextPageToken": str(number)}).encode(), "application/json")


def _hub_pages(asked: Asked) -> None:
    number = time.monotonic_ns()
    files = [{"type": "file", "oid": "0" * 40, "size": 9, "path": f"run/{number + n}.pt"} for n in range(_PAGE)]
    following = f'<http://{asked.headers["Host"]}{asked.path.partition("?")[0]}?cursor={number}>; rel="next"'
    _page(asked, json.dumps(files).encode(), "application/json", link=following)


def lists(asked: Asked) -> bool:
    """Whether a request is for the names in the folder of the run."""
    names = ("list-type", "HEAD", "/o?", "/o/run", "/tree/main/run")
    return any(name in f"{asked.method} {asked.path}" for name in names) and asked.range is None


def _files(folder: Path) -> dict[str, bytes]:
    paths = write_series(folder / "run", states_of(2, _ELEMENTS), form="safetensors")
    return {f"run/{path.name}": path.read_bytes() for path in paths}


def s3(folder: Path) -> Bench:
    """Return S3."""
    server = store.Store()
    for name, data in _files(folder).items():
        server.put(name, data)
    proxy = HostileProxy(server.environment["AWS_ENDPOINT_URL"])
    return Bench(
        name="S3",
        pages=_s3_pages,
        stages=_S3_STAGES,
        proxy=proxy,
        run=f"s3://{store.BUCKET}/run",
        out=f"s3://{store.BUCKET}/out",
        environment={**server.environment, "AWS_ENDPOINT_URL": proxy.address},
        names=server.names,
        unfinished=lambda: len(server.unfinished()),
        get=server.get,
        close=lambda: _close(proxy, server),
    )


def google(folder: Path) -> Bench:
    """Return Google Cloud Storage."""
    server = gcs.Gcs()
    for name, data in _files(folder).items():
        server.put(name, data)
    proxy = HostileProxy(server.address)
    server.address = proxy.address
    return Bench(
        name="GCS",
        pages=_google_pages,
        stages=_GOOGLE_STAGES,
        proxy=proxy,
        run=f"gs://{gcs.BUCKET}/run",
        out=f"gs://{gcs.BUCKET}/out",
        environment={**server.environment, "STORAGE_EMULATOR_HOST": proxy.address},
        names=lambda: set(server.objects),
        unfinished=lambda: len(server.uploads),
        get=server.get,
        close=lambda: _close(proxy, server),
    )


def huggingface(folder: Path) -> Bench:
    """Return the Hugging Face Hub."""
    server = hub.Hub()
    server.clear()
    server.commit(dict(_files(folder)))
    proxy = HostileProxy(server.address)
    server.address = proxy.address
    return Bench(
        name="Hub",
        pages=_hub_pages,
        stages=_HUB_STAGES,
        proxy=proxy,
        run=f"hf://{hub.REPO}/run",
        out=f"hf://{hub.REPO}/out",
        environment={**server.environment, "HF_ENDPOINT": proxy.address},
        names=lambda: set(server.files()),
        unfinished=lambda: 0,
        get=lambda name: server.files()[name],
        close=lambda: _close(proxy, server),
    )


def _close(proxy: HostileProxy, server: Any) -> None:
    proxy.close()
    server.close()


BENCHES: dict[str, Callable[[Path], Bench]] = {"s3": s3, "gcs": google, "hub": huggingface}
