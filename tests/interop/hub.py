"""A hub that speaks the API of the Hugging Face Hub on the loopback, as far as HfFileSystem and commits need it.

One model repository with revisions: its information, its tree, files by ranges behind a redirect, and commits of files
that were sent with the commit or, when large, before it by the protocol of Git LFS.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from werkzeug.wrappers import Request, Response

from tests.interop.loopback import Loopback

REPO = "org/model"
_LFS_BYTES = 10_000
"""From this size on a file is sent before its commit."""


class Hub(Loopback):
    """The server."""

    def __init__(self) -> None:
        self.commits: list[dict[str, bytes]] = []
        """The files of each commit, oldest first."""
        self.branches: dict[str, int] = {}
        """Revisions, and the numbers of their commits."""
        self.large: dict[str, bytes] = {}
        """The files sent by the protocol of Git LFS, by their SHA-256."""
        self.refuse: Callable[[Request], int | None] = lambda _: None
        """Return the status of a refusal."""
        self.delayed = False
        """Whether uploads of large files wait."""
        self.sent: list[tuple[str, int, int]] = []
        """Name, first byte and length of every part that was sent."""
        super().__init__(self._application)
        self.environment = {
            "HF_ENDPOINT": self.address,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_nothing",
            "NO_PROXY": "127.0.0.1",
        }

    def clear(self) -> None:
        """Begin with one commit without files."""
        self.commits = [{}]
        self.branches = {"main": 0}
        self.large.clear()
        self.sent.clear()
        self.refuse = lambda _: None
        self.delayed = False
        self.arrived.clear()
        self.opened.clear()

    def commit(self, files: dict[str, bytes | None], revision: str = "main") -> None:
        """Change files of a revision, or remove them."""
        changed = {**self.files(revision), **files}
        self.commits.append({name: data for name, data in changed.items() if data is not None})
        self.branches[revision] = len(self.commits) - 1

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a revision."""
        return self.commits[self.branches[revision]]

    def _application(self, environment: dict[str, Any], start: Any) -> Any:
        request = Request(environment)
        status = self.refuse(request)
        answer = _refusal(status) if status is not None else self._answer(request)
        return answer(environment, start)

    def _answer(self, request: Request) -> Response:
        path = unquote(request.environ["REQUEST_URI"].partition("?")[0])
        for pattern, reply in (
            (rf"/api/models/{REPO}/tree/([^/]+)/?(.*)", self._tree),
            (rf"/api/models/{REPO}/preupload/(.+)", self._preupload),
            (rf"/api/models/{REPO}/commit/(.+)", self._commit),
            (rf"/api/models/{REPO}(?:/revision/(.+))?", self._info),
            (rf"/{REPO}.git/info/lfs/objects/batch", self._batch),
            (r"/lfs/([0-9a-f]{64})", self._large),
            (rf"/{REPO}/resolve/([^/]+)/(.+)", self._resolve),
            (r"/cdn/([^/]+)/(.+)", self._part),
        ):
            found = re.fullmatch(pattern, path)
            if found is not None:
                return reply(request, *found.groups())
        return _refusal(404, "RepoNotFound")

    def _info(self, _: Request, revision: str | None) -> Response:
        if (revision or "main") not in self.branches:
            return _refusal(404, "RevisionNotFound")
        return _json({"id": REPO, "sha": f"{self.branches[revision or 'main']:040x}", "siblings": []})

    def _tree(self, _: Request, revision: str, folder: str) -> Response:
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, object]] = {}
        for name, data in self.files(revision).items():
            if name.startswith(prefix):
                inner, below, _rest = name[len(prefix) :].partition("/")
                oid = hashlib.sha1(data, usedforsecurity=False).hexdigest()
                file = {"type": "file", "oid": oid, "size": len(data), "path": name}
                lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
                folder_entry = {"type": "directory", "oid": "0" * 40, "size": 0, "path": prefix + inner}
                entries[inner] = folder_entry if below else {**file, "lfs": lfs}
        return _json(list(entries.values())) if entries or not folder else _refusal(404, "EntryNotFound")

    def _resolve(self, _: Request, revision: str, name: str) -> Response:
        if name not in self.files(revision):
            return _refusal(404, "EntryNotFound")
        return Response(status=302, headers={"Location": f"{self.address}/cdn/{revision}/{name}"})

    def _part(self, request: Request, revision: str, name: str) -> Response:
        data = self.files(revision)[name]
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if found is None:
            self.sent.append((name, 0, len(data)))
            return Response(data)
        first, last = int(found[1]), min(int(found[2]), len(data) - 1)
        self.sent.append((name, first, last + 1 - first))
        return Response(data[first : last + 1], 206, {"Content-Range": f"bytes {first}-{last}/{len(data)}"})

    def _preupload(self, request: Request, _: str) -> Response:
        files = json.loads(request.data)["files"]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= _LFS_BYTES else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        return _json({"files": modes})

    def _batch(self, request: Request) -> Response:
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.address}/lfs/{wanted['oid']}"}}}
            for wanted in json.loads(request.data)["objects"]
        ]
        return _json({"transfer": "basic", "objects": objects})

    def _large(self, request: Request, oid: str) -> Response:
        data = request.data
        if self.delayed:
            self.arrived.set()
            self.opened.wait(60)
        if hashlib.sha256(data).hexdigest() != oid:
            return _refusal(400)
        self.large[oid] = data
        return Response()

    def _commit(self, request: Request, revision: str) -> Response:
        changes: dict[str, bytes | None] = {}
        for line in request.data.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                changes[value["path"]] = self.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                changes[value["path"]] = None
        self.commit(changes, revision)
        place = f"{self.address}/{REPO}/commit/{self.branches[revision]:040x}"
        return _json({"commitUrl": place, "commitOid": f"{self.branches[revision]:040x}", "success": True})


def _json(document: object) -> Response:
    return Response(json.dumps(document), content_type="application/json")


def _refusal(status: int, code: str = "") -> Response:
    headers = {"X-Error-Code": code, "X-Error-Message": "refused"} if code else {}
    return Response(json.dumps({"error": "refused"}), status, headers, content_type="application/json")
