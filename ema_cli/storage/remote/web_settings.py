"""What a user sets for web servers: the configuration of fsspec, and with ``trust_env`` the environment.

fsspec itself is not used for the web. Its configuration has arguments for a session of aiohttp (``client_kwargs``), and
for each of its requests: those that ema-avg heeds have the same meaning here, others are refused.
"""

from __future__ import annotations

import os
import ssl
import sys
from base64 import b64encode
from collections.abc import Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.request import getproxies, proxy_bypass

from ema_cli.errors import UsageError
from ema_cli.record import record
from ema_cli.storage.remote.web_connection import Proxy
from ema_cli.text import quoted, without_secrets

_USED = ("headers", "auth", "cookies", "proxy", "proxy_auth", "proxy_headers", "ssl", "verify_ssl", "ssl_context")
"""Of a request. A session may have them too, but for ``cookies``, which it would store, and those of TLS."""
_OF_SESSION = ("headers", "auth", "proxy", "proxy_auth", "trust_env")
_WITHOUT_EFFECT = {
    *("timeout", "read_timeout", "conn_timeout", "read_bufsize", "auto_decompress", "cookie_jar", "cookies"),
    *("request_class", "response_class", "raise_for_status", "allow_redirects", "max_redirects", "max_line_size"),
    *("max_field_size", "max_headers", "version", "skip_auto_headers", "requote_redirect_url"),
    *("simple_links", "block_size", "same_scheme", "size_policy", "cache_type", "cache_options", "asynchronous"),
    *("loop", "get_client", "use_listings_cache", "listings_expiry_time", "max_paths", "skip_instance_cache"),
    "batch_size",
}
"""Arguments for what is not done here, or is limited by ema-avg: time, sizes, redirects, listings."""

Headers = tuple[tuple[str, str], ...]


@record
class WebSettings:
    """The settings of requests to web servers."""

    headers: Headers = ()
    """For the host that the user named."""
    is_encoded: bool = False
    """Whether all addresses are sent as they are."""
    proxy: Proxy | None = None
    trust_env: bool = False
    """Whether proxies and ``.netrc`` are those of the environment."""
    context: ssl.SSLContext | None = None
    """For TLS; ``None``: one that trusts the authorities of the system, and of ``SSL_CERT_FILE``."""

    def proxy_of(self, scheme: str, host: str) -> Proxy | None:
        """Return the proxy for a host, if there is one."""
        if self.proxy or not self.trust_env or proxy_bypass(host):
            return self.proxy
        address = getproxies().get(scheme, "")
        return None if not address or address.startswith("https:") else _proxy(address, None, {}, trust_env=True)

    def login_of(self, host: str) -> Headers:
        """Return the header with the login that ``.netrc`` has for a host, if it may be used."""
        return _from_netrc(host, "Authorization") if self.trust_env else ()


def web_settings() -> WebSettings:
    """Return the settings.

    Raises:
        UsageError: one of them is not known, or not valid.

    """
    options = _configured()
    session = options.pop("client_kwargs", None) or {}
    if not isinstance(session, Mapping):
        raise UsageError("the configuration of fsspec for http is not valid: client_kwargs is no object")
    is_encoded = bool(options.pop("encoded", False))
    _refuse_others(options, _USED, "")
    _refuse_others(session, _OF_SESSION, "client_kwargs: ")
    found = {**session, **options}
    try:
        headers = {**dict(session.get("headers") or {}), **dict(options.get("headers") or {})}
        if found.get("auth") is not None:
            headers["Authorization"] = basic_login(*found["auth"])
        if options.get("cookies"):
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in dict(options["cookies"]).items())
        trust_env = bool(session.get("trust_env"))
        login, sent = found.get("proxy_auth"), dict(found.get("proxy_headers") or {})
        proxy = _proxy(str(found["proxy"]), login, sent, trust_env=trust_env) if found.get("proxy") else None
        context = _context(options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the configuration of fsspec for http is not valid: {error}") from error
    return WebSettings(
        headers=tuple((str(name), str(value)) for name, value in headers.items()),
        is_encoded=is_encoded,
        proxy=proxy,
        trust_env=trust_env,
        context=context,
    )


def basic_login(user: str, password: str = "", encoding: str = "latin-1") -> str:
    """Return the value of the header ``Authorization`` for a user and a password."""
    return "Basic " + b64encode(f"{user}:{password}".encode(encoding)).decode("ascii")


def _configured() -> dict[str, Any]:
    """Return the configuration of fsspec for the web. Its import takes longer than a small run: often there is none."""
    is_set = "fsspec" in sys.modules or any(name.startswith("FSSPEC_") for name in os.environ)
    if not is_set and not Path("~/.config/fsspec").expanduser().is_dir():
        return {}
    from fsspec.config import conf  # noqa: PLC0415

    return {**conf.get("http", {}), **conf.get("https", {})}


def _refuse_others(options: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
    for name, value in options.items():
        if name not in known and name not in _WITHOUT_EFFECT and value is not None:
            message = f"the configuration of fsspec for http has {quoted(place + name)}, which ema-avg does not heed"
            raise UsageError(message, hint=f"remove it, or use one of {', '.join(known)}")


def _context(options: Mapping[str, Any]) -> ssl.SSLContext | None:
    chosen = [options.get(name) for name in ("ssl", "ssl_context") if options.get(name) not in (None, True)]
    if chosen and isinstance(chosen[0], ssl.SSLContext):
        return chosen[0]
    if chosen and chosen[0] is not False:
        raise ValueError("ssl is neither true nor false")
    if not chosen and options.get("verify_ssl") is not False:
        return None
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _proxy(address: str, login: Any, headers: Mapping[str, str], *, trust_env: bool) -> Proxy:  # noqa: ANN401
    """Return the proxy with an address."""
    from yarl import URL  # noqa: PLC0415 - only where something is on the web

    found = URL(address)
    if found.scheme != "http" or not found.raw_host or found.port is None:
        shown = quoted(without_secrets(address, whole=True))
        raise UsageError(f"the proxy {shown} cannot be used", hint="http://HOST:PORT")
    if login is None and (found.user is not None or found.password is not None):
        login = (found.user or "", found.password or "")
    sent = [(str(name), str(value)) for name, value in headers.items()]
    if login is not None:
        sent.append(("Proxy-Authorization", basic_login(*login)))
    elif trust_env:
        sent += _from_netrc(found.raw_host, "Proxy-Authorization")
    return Proxy(host=found.raw_host, port=found.port, headers=tuple(sent))


def _from_netrc(host: str, header: str) -> Headers:
    """Return a header with the login that ``.netrc`` has for a host; none if there is no such file."""
    try:
        found = netrc(os.environ.get("NETRC") or Path("~/.netrc").expanduser()).authenticators(host)
    except (OSError, NetrcParseError):
        return ()
    return ((header, basic_login(found[0] or found[1], found[2] or "")),) if found else ()
