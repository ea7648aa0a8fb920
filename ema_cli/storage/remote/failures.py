"""The errors of stores and their libraries: what they mean, and their text."""

from __future__ import annotations

from ema_cli.storage.url import Url
from ema_cli.text import without_secrets

_LOGINS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "gcloud auth application-default login",
    "hf": "hf auth login, or set HF_TOKEN",
}
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _PRECONDITION = 401, 403, 404, 412
_LONGEST_REASON = 300


def is_missing(error: Exception) -> bool:
    """Whether a store reports that the object does not exist."""
    return isinstance(error, FileNotFoundError) or _status(error) == _NOT_FOUND


def is_forbidden(error: Exception) -> bool:
    """Whether a store requires a login, or denies access."""
    no_login = {kind.__name__ for kind in type(error).__mro__} & {"NoCredentialsError", "LocalTokenNotFoundError"}
    by_gcsfs = isinstance(error, OSError) and str(error).startswith("Forbidden")
    denied = isinstance(error, PermissionError) or _status(error) in (_UNAUTHORIZED, _FORBIDDEN)
    return bool(no_login) or by_gcsfs or denied


def is_replaced(error: Exception) -> bool:
    """Whether a store reports that the object was replaced."""
    return _status(error) == _PRECONDITION


def _status(error: Exception) -> int | None:
    """Return the HTTP status of an error; every library stores it differently."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return _number(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    if response is not None:  # huggingface_hub
        return _number(getattr(response, "status_code", None))
    if hasattr(error, "status"):  # aiohttp
        return _number(error.status)
    return _number(getattr(error, "code", None))  # gcsfs


def _number(value: object) -> int | None:
    return int(value) if isinstance(value, int | str) and str(value).isdecimal() else None


def reason_of(error: Exception, url: Url) -> str:
    """Return the text of an error on one line, without secrets in the address."""
    text = str(error)
    if hasattr(error, "request_info"):  # aiohttp; its text has the whole address
        text = f"{_status(error)} {getattr(error, 'message', '')}"
    text = " ".join(without_secrets(text.replace(url.address, str(url))).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"


def login(url: Url) -> str:
    """Return how to log in to a store; empty if that is unknown."""
    return _LOGINS.get({"s3a": "s3", "gcs": "gs"}.get(url.scheme, url.scheme), "")
