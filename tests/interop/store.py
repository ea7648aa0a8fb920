"""A store that speaks S3 on the loopback: moto's server, with a gate that can delay uploads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any
from urllib.request import Request, urlopen

BUCKET = "runs"


class Gate:
    """The gate before the store: it lets everything through, until it has to delay writes to a key."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.application = application
        self.delayed: str | None = None
        """Part of the paths of uploads that wait."""
        self.arrived = threading.Event()
        """Set once such an upload waits."""
        self.opened = threading.Event()
        self.refused: str | None = None
        """Part of the paths of uploads that may not be completed."""
        self.written: list[tuple[str, str]] = []
        """Method and path of requests that publish or remove an object."""

    def __call__(self, environment: dict[str, Any], start: Any) -> Iterable[bytes]:
        """Pass a request on, now or when the gate is opened."""
        delayed = self.delayed is not None and self.delayed in environment["PATH_INFO"]
        if delayed and environment["REQUEST_METHOD"] == "PUT":
            self.arrived.set()
            self.opened.wait(60)
        method, query = environment["REQUEST_METHOD"], environment.get("QUERY_STRING", "")
        completes = method == "POST" and "uploadId" in query
        if completes and self.refused is not None and self.refused in environment["PATH_INFO"]:
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>you may not</Message></Error>"]
        if completes or (method in ("PUT", "DELETE") and "uploadId" not in query):
            self.written.append((method, environment["PATH_INFO"]))
        return self.application(environment, start)


class Store:
    """The server, and a client of the official library."""

    def __init__(self) -> None:
        import boto3
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.gate = Gate(DomainDispatcherApplication(create_backend_app))
        self._server = make_server("127.0.0.1", 0, self.gate, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }
        reset = Request(f"{self.environment['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST")
        urlopen(reset).close()  # the objects of a process are those of all its servers
        self.client = boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="nobody",
            aws_secret_access_key="nothing",
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket=BUCKET)

    def names(self, prefix: str = "") -> set[str]:
        """Return the keys that exist."""
        listed = self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
        return {entry["Key"] for entry in listed.get("Contents", ())}

    def unfinished(self) -> list[str]:
        """Return the keys of uploads in parts that were neither finished nor aborted."""
        listed = self.client.list_multipart_uploads(Bucket=BUCKET)
        return [entry["Key"] for entry in listed.get("Uploads", ())]

    def put(self, name: str, data: bytes) -> None:
        """Store an object."""
        self.client.put_object(Bucket=BUCKET, Key=name, Body=data)

    def get(self, name: str) -> bytes:
        """Return an object."""
        data: bytes = self.client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
        return data

    def parts(self, name: str) -> int:
        """Return in how many parts an object was uploaded; 1 if it was sent whole."""
        tag = self.client.head_object(Bucket=BUCKET, Key=name)["ETag"].strip('"')
        return int(tag.partition("-")[2] or 1)

    def close(self) -> None:
        """Stop."""
        self.gate.opened.set()
        self.client.close()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
