"""A store that speaks the JSON API of Google Cloud Storage on the loopback, as far as gcsfs needs it.

Objects with generations, listings, media by ranges, uploads in one request and resumable ones: chunks of whole 256 KiB
before the last, an object only when its upload is complete. Reference: cloud.google.com/storage/docs/json_api and
/performing-resumable-uploads.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from werkzeug.wrappers import Request, Response

from tests.interop.loopback import Loopback

BUCKET = "runs"
_UNIT = 1 << 18


@dataclass
class Upload:
    """A resumable upload that is under way."""

    name: str
    data: bytearray = field(default_factory=bytearray)


@dataclass
class Answers:
    """The answers of the store that are replaced, for tests of faults."""

    refuse: Callable[[Request], int | None] = lambda _: None
    """Return the status of a refusal."""
    slow: float = 0.0
    """Seconds before each answer with data."""


class Gcs(Loopback):
    """The server."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[int, bytes]] = {}
        """Generation and data by name."""
        self.uploads: dict[str, Upload] = {}
        self.answers = Answers()
        self.delayed: str | None = None
        """Part of the names that have to wait with their chunks."""
        self.asked: list[tuple[str, str]] = []
        """Method and path of every request."""
        self.chunks: dict[str, int] = {}
        """The number of chunks in which an object was uploaded."""
        self._numbers = itertools.count(1)
        super().__init__(self._application)
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.address,
            "NO_GCE_CHECK": "true",
            "GOOGLE_CLOUD_PROJECT": "nothing",
            "NO_PROXY": "127.0.0.1",
        }

    def clear(self) -> None:
        """Forget all objects and faults."""
        self.objects.clear()
        self.uploads.clear()
        self.asked.clear()
        self.answers = Answers()
        self.delayed = None
        self.arrived.clear()
        self.opened.clear()

    def put(self, name: str, data: bytes) -> int:
        """Store an object and return its generation."""
        generation = next(self._numbers)
        self.objects[name] = generation, data
        return generation

    def get(self, name: str) -> bytes:
        """Return an object."""
        return self.objects[name][1]

    def _application(self, environment: dict[str, Any], start: Any) -> Any:
        request = Request(environment)
        self.asked.append((request.method, request.path))
        status = self.answers.refuse(request)
        answer = _refusal(status) if status is not None else self._answer(request)
        return answer(environment, start)

    def _answer(self, request: Request) -> Response:
        found = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", request.path)
        if found is None:
            return _refusal(404)
        kind, bucket, name = found.groups()
        if bucket != BUCKET:
            return _refusal(404)
        if kind == "/upload":
            return self._upload(request)
        if name is None:
            return self._list(request) if request.path.endswith("/o") else _json({"name": bucket})
        return self._object(request, unquote(name))

    def _object(self, request: Request, name: str) -> Response:
        wanted = request.args.get("generation")
        if name not in self.objects or (wanted and int(wanted) != self.objects[name][0]):
            return _refusal(404)
        if request.method == "DELETE":
            del self.objects[name]
            return Response(status=204)
        return self._media(request, name) if request.args.get("alt") == "media" else _json(self._resource(name))

    def _list(self, request: Request) -> Response:
        prefix, delimiter = request.args.get("prefix", ""), request.args.get("delimiter")
        names, folders = [], set()
        for name in sorted(self.objects):
            if not name.startswith(prefix):
                continue
            inner, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if found:
                folders.add(prefix + inner + found)
            else:
                names.append(name)
        most = int(request.args.get("maxResults", 1000))
        return _json({"items": [self._resource(name) for name in names[:most]], "prefixes": sorted(folders)})

    def _resource(self, name: str) -> dict[str, object]:
        generation, data = self.objects[name]
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": BUCKET,
            "generation": str(generation),
            "size": str(len(data)),
            "etag": f"e{generation}",
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }

    def _media(self, request: Request, name: str) -> Response:
        data = self.get(name)
        time.sleep(self.answers.slow)
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if found is None:
            return Response(data)
        first, last = int(found[1]), min(int(found[2]), len(data) - 1)
        return Response(data[first : last + 1], 206, {"Content-Range": f"bytes {first}-{last}/{len(data)}"})

    def _upload(self, request: Request) -> Response:
        if request.args["uploadType"] == "multipart":
            return self._whole(request)
        number = request.args.get("upload_id")
        if number is None:
            number = str(next(self._numbers))
            self.uploads[number] = Upload(request.args.get("name") or json.loads(request.data)["name"])
            return Response(
                headers={"Location": f"{self.address}{request.path}?uploadType=resumable&upload_id={number}"}
            )
        if request.method == "DELETE":
            del self.uploads[number]
            return Response(status=499)
        return self._chunk(request, number)

    def _whole(self, request: Request) -> Response:
        boundary = re.search(r'boundary="?([^";]+)', request.headers["Content-Type"])
        assert boundary is not None
        _, meta, content, _ = request.data.split(b"--" + boundary[1].encode(), 3)
        name = json.loads(meta.partition(b"\n\n")[2])["name"]
        self.put(name, content.partition(b"\n\n")[2].removesuffix(b"\n"))
        return _json(self._resource(name))

    def _chunk(self, request: Request, number: str) -> Response:
        upload = self.uploads[number]
        data, content_range = request.data, request.headers["Content-Range"]
        if self.delayed is not None and self.delayed in upload.name:
            self.arrived.set()
            self.opened.wait(60)
        found = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", content_range)
        assert found is not None, content_range
        if found[1] is not None:
            assert (int(found[1]), int(found[2])) == (len(upload.data), len(upload.data) + len(data) - 1), content_range
        upload.data += data
        self.chunks[upload.name] = self.chunks.get(upload.name, 0) + 1
        if found[3] == "*":
            assert len(data) % _UNIT == 0, content_range
            return Response(status=308, headers={"Range": f"bytes=0-{len(upload.data) - 1}"})
        assert int(found[3]) == len(upload.data), content_range
        self.put(upload.name, bytes(upload.data))
        del self.uploads[number]
        return _json(self._resource(upload.name))


def _json(document: object) -> Response:
    return Response(json.dumps(document), content_type="application/json")


def _refusal(status: int) -> Response:
    message = {401: "Anonymous caller does not have access", 403: "you may not", 404: "Not Found", 503: "busy"}[status]
    return Response(
        json.dumps({"error": {"code": status, "message": message}}), status, content_type="application/json"
    )
