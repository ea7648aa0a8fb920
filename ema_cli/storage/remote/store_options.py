"""How the libraries of stores are configured: limits, unless the user's configuration of fsspec has others."""

from __future__ import annotations

import inspect
import logging
import os
from typing import Any

from ema_cli.storage.remote import limits
from ema_cli.storage.remote.prefetch import LARGE_REQUESTS, SMALL_REQUESTS

_LOGGERS = ("aiohttp", "fsspec", "gcsfs", "s3fs")
"""Libraries that log the errors that they raise; without a handler these would go to the terminal, with a traceback."""


def options_for(scheme: str) -> dict[str, Any]:
    """Return the arguments for fsspec's file system of a scheme.

    The user's values in the configuration of fsspec (files, ``FSSPEC_S3_...``) take precedence.
    """
    if scheme in ("s3", "s3a"):
        return {"config_kwargs": {**_s3_config(), **user_options(("s3", "s3a"), "config_kwargs")}}
    if scheme in ("gs", "gcs"):
        return _google_options()
    return {}


def limit_tries(store: Any, scheme: str) -> None:  # noqa: ANN401 - of fsspec
    """Leave repetitions to botocore, which has settings for them, and to this program: s3fs would multiply them."""
    if scheme in ("s3", "s3a"):
        store.retries = 1


def _google_options() -> dict[str, Any]:
    from fsspec.config import conf  # noqa: PLC0415

    from ema_cli.storage.remote.aiohttp_answers import session_options, timeouts  # noqa: PLC0415 - aiohttp

    options: dict[str, Any] = {"session_kwargs": {**session_options(), **user_options(("gs", "gcs"), "session_kwargs")}}
    if not any("requests_timeout" in conf.get(scheme, {}) for scheme in ("gs", "gcs")):
        options["requests_timeout"] = timeouts()  # gcsfs passes on None, which is no limit
    return options


def _s3_config() -> dict[str, Any]:
    from aiobotocore.config import AioConfig  # noqa: PLC0415 - slow, and only for S3

    config: dict[str, Any] = {
        "connect_timeout": limits.CONNECT_SECONDS,
        "read_timeout": limits.STALL_SECONDS,
        "max_pool_connections": SMALL_REQUESTS + LARGE_REQUESTS,  # 10 if it is not given
    }
    if "http_session_cls" in inspect.signature(AioConfig.__init__).parameters:  # since aiobotocore 2.20
        from ema_cli.storage.remote.aiohttp_answers import session_class  # noqa: PLC0415

        config["http_session_cls"] = session_class()
    return config


def user_options(schemes: tuple[str, ...], name: str) -> dict[str, Any]:
    """Return an argument for fsspec's file system of some schemes, from the user's configuration of fsspec."""
    from fsspec.config import conf  # noqa: PLC0415

    return {key: value for scheme in schemes for key, value in conf.get(scheme, {}).get(name, {}).items()}


def silence(loop: Any) -> None:  # noqa: ANN401
    """Keep what the libraries log from the terminal, and tracebacks of fsspec's event loop ``loop`` if there is one.

    Errors are raised where an answer is awaited, and texts may be those of a server.
    """
    if loop is not None:
        loop.set_exception_handler(lambda _, context: logging.getLogger("fsspec").debug("%s", context))
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
    if "HF_HUB_VERBOSITY" not in os.environ:
        for handler in logging.getLogger("huggingface_hub").handlers:
            if _is_foreign not in handler.filters:
                handler.addFilter(_is_foreign)


def _is_foreign(_: logging.LogRecord) -> bool:
    """Whether a record comes from a call that is not one of this program."""
    return not limits.in_call()
