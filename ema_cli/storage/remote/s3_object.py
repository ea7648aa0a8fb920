"""Objects of S3, read as files on the web: one signed address costs less than a library that signs every request.

The library of the store signs the address, with its own credentials and settings. What is refused there, and what needs
more than an address, the library reads itself: it knows regions, other ways to sign, and what an error means.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ema_cli.storage.remote import limits
from ema_cli.storage.remote.store_failure import FailureKind, StoreError, StoreFailure
from ema_cli.storage.remote.store_options import limit_tries, user_options
from ema_cli.storage.remote.stores import calling
from ema_cli.storage.remote.web_client import WebClient
from ema_cli.storage.remote.web_object import WebObject
from ema_cli.storage.remote.web_settings import WebSettings
from ema_cli.storage.url import Url

S3 = ("s3", "s3a")
_VALID_SECONDS = 3600
"""How long an address is valid."""
_RENEWED_SECONDS = 300
"""After which it is signed again: temporary credentials are replaced 10 minutes before their end at the latest."""
_SIGNING = frozenset(
    (
        *("signature_version", "region_name", "s3", "use_dualstack_endpoint", "use_fips_endpoint"),
        *("endpoint_url", "use_ssl", "api_version"),
        *("aws_access_key_id", "aws_secret_access_key", "aws_session_token"),
    )
)
"""Settings of botocore that its addresses follow. Others are about requests, which only the library sends so."""
_REGION = "x-amz-bucket-region"
_SIGNERS: dict[tuple[Any, str], Any] = {}
"""By s3fs' file system and bucket, the one that signs the addresses; ``None`` if the library has to read there."""
_LOCK = threading.Lock()


class S3Object(WebObject):
    """An object in a bucket, as it was when it was opened.

    Args:
        store: s3fs' file system that signs the addresses.
        path: of the object there.
        url: of the object.
        head_bytes: how many of the first bytes to request.

    Raises:
        StoreError: the object does not exist, the store denies access, or fails.
        Exception: of the library, if it cannot sign: there are no credentials.

    """

    def __init__(self, store: Any, path: str, url: Url, head_bytes: int) -> None:  # noqa: ANN401 - s3fs has no types
        self._signer, self._path, self._refusals = store, path, 0
        address = self._signed(url)
        client = _client("/".join(address.address.split("/")[:3]))
        super().__init__(url, head_bytes, client=client, address=address)

    def _open(self, head_bytes: int) -> None:
        from botocore.utils import parse_timestamp  # noqa: PLC0415 - slow, and only for S3

        super()._open(head_bytes)
        self._changed = "" if self.modified is None else parse_timestamp(self.modified)

    @property
    def info(self) -> dict[str, Any]:
        """Size, entity tag and time of the last change, as s3fs describes an object."""
        return {"size": self.size, "ETag": self.tag or "", "LastModified": self._changed}

    def read(self, begin: int, end: int) -> list[bytes | bytearray]:
        """Return the bytes from ``begin`` to before ``end``, requested at an address that is still valid."""
        self.address = self._signed(self.url)
        try:
            return super().read(begin, end)
        except StoreError as error:
            self._refusals += is_refused(error.failure)
            raise

    def raise_if_changed(self) -> None:
        """Ask for the object again, unless every answer has shown that it is of the same version."""
        self.address = self._signed(self.url)
        super().raise_if_changed()

    def _signed(self, url: Url) -> Url:
        """Return an address that is still valid, and not one that was refused."""
        with calling(url, seconds=limits.CALL_SECONDS):
            return _address(self._signer, self._path, int(time.monotonic() // _RENEWED_SECONDS), self._refusals)


@lru_cache(maxsize=1024)
def _address(signer: Any, path: str, period: int, refusals: int) -> Url:  # noqa: ANN401, ARG001 - what is remembered
    """Return a signed address, the same one for a while: to sign takes half a millisecond."""
    return Url(signer.sign(path, expiration=_VALID_SECONDS))


def is_refused(failure: StoreFailure) -> bool:
    """Whether what is asked at an address of an object that exists is refused, so that the library has to ask."""
    return not failure.may_pass and failure.kind not in (FailureKind.MISSING, FailureKind.REPLACED)


def signer_of(store: Any, path: str) -> Any:  # noqa: ANN401
    """Return the file system of s3fs that signs the address of an object; ``None`` if the library has to read it."""
    bucket, key, _ = store.split_path(path)
    # Access points and directory buckets have signatures of their own.
    if not key or ":" in bucket or bucket.endswith("--x-s3"):
        return None
    with _LOCK:
        if (store, bucket) not in _SIGNERS:
            try:
                _SIGNERS[store, bucket] = store if _signs_all(store, bucket) else None
            except Exception:  # noqa: BLE001 - of any kind, such as settings that are wrong: the library says so
                return None
        return _SIGNERS[store, bucket]


def replace_signer(store: Any, path: str, refused: Any) -> None:  # noqa: ANN401
    """Find another signer for a bucket that the library can read, but not at addresses of ``refused``.

    They may have to be those of another region, which only the library finds out by itself.
    """
    bucket, *_ = store.split_path(path)
    with _LOCK:
        if _SIGNERS[store, bucket] is not refused:
            return
        _SIGNERS[store, bucket] = None
        with suppress(Exception):
            region = store.call_s3("head_bucket", Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"][_REGION]
            if region != refused.s3.meta.region_name:
                settings = {**store.client_kwargs, "region_name": region}
                made = type(store)(**{**store.storage_options, "client_kwargs": settings, "session": store.session})
                limit_tries(made, S3[0])
                _SIGNERS[store, bucket] = made if _signs_all(made, bucket) else None


def _signs_all(store: Any, bucket: str) -> bool:  # noqa: ANN401
    """Whether an address can do all that the settings ask for: no further headers, proxies or certificates."""
    from fsspec.asyn import sync  # noqa: PLC0415 - only where something is remote

    settings = {*store.client_kwargs, *user_options(S3, "config_kwargs")}
    if store.requester_pays or store.s3_additional_kwargs or settings - _SIGNING:
        return False
    store.connect()
    client = sync(store.loop, store.get_s3, bucket)
    client.meta.events.register_first("choose-signer.s3", _keep_version_4, unique_id=__name__)
    endpoint = urlsplit(client.meta.endpoint_url)
    if endpoint.scheme in getproxies() and not proxy_bypass(endpoint.hostname or ""):
        return False
    authorities = store.session.get_config_variable("ca_bundle")
    return endpoint.scheme == "http" or authorities in (None, ssl.get_default_verify_paths().cafile)


def _keep_version_4(signature_version: object, **_: object) -> object:
    """Return the version to sign an address with: botocore's default is an old one, which not all buckets take."""
    return "s3v4-query" if signature_version in ("v4-query", "s3v4-query") else None


@cache
def _client(server: str) -> WebClient:  # noqa: ARG001 - each has its own
    """Return a client without the user's settings of the web: they are for other servers."""
    return WebClient(
        WebSettings(is_encoded=True),
        redirects=False,
        connect_seconds=limits.CONNECT_SECONDS,
        answer_seconds=limits.STALL_SECONDS,
    )


os.register_at_fork(after_in_child=_client.cache_clear)  # a connection is not shared
