"""Objects of S3 at signed addresses: requests, settings, refusals, and what is shown of a signature."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

import ema_cli
from ema_cli.errors import InputChanged, InputRefused, NothingMatched
from ema_cli.storage.remote import remote_source, retries, s3_object, stores
from ema_cli.storage.remote.remote_source import RemoteSource, is_remote_folder
from ema_cli.storage.url import Url
from tests.helpers.series import load
from tests.interop.benches import Bench, s3
from tests.interop.hostile_proxy import MODES, Asked, Plan
from tests.interop.judge import DECAY, assert_fold, states_of
from tests.interop.store import BUCKET

s3fs = pytest.importorskip("s3fs")
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
ONE, TWO = f"s3://{BUCKET}/run/ckpt_100.safetensors", f"s3://{BUCKET}/run/ckpt_200.safetensors"
SIGNED = "X-Amz-Signature="


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A bucket behind a proxy."""
    bench = s3(tmp_path_factory.mktemp("bench"))
    yield bench
    bench.close()


@pytest.fixture
def bench(served: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """The bucket, with an honest proxy; the library is configured anew."""
    for name, value in {**served.environment, "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stores, "_STORES", {})
    monkeypatch.setattr(remote_source, "_OBJECTS_UNTIL", {})
    monkeypatch.setattr(s3_object, "_SIGNERS", {})
    s3_object._address.cache_clear()
    monkeypatch.setattr(retries, "RETRY_DELAY_SECONDS", 0)
    s3fs.S3FileSystem.clear_instance_cache()
    yield served
    served.proxy.plan = Plan()
    s3fs.S3FileSystem.clear_instance_cache()


def log(bench: Bench) -> list[Asked]:
    """Return the list of the requests from now on, all answered by the store."""
    asked: list[Asked] = []

    def note(one: Asked) -> bool:
        asked.append(one)
        return False

    bench.proxy.plan = Plan(mode=MODES["500"], when=note)
    return asked


def refuse(bench: Bench, mode: str, *, times: int = 1 << 30) -> Plan:
    """Answer requests at signed addresses in a mode."""
    plan = Plan(mode=MODES[mode], when=lambda one: SIGNED in one.path, times=times)
    bench.proxy.plan = plan
    return plan


def from_library(url: str, monkeypatch: pytest.MonkeyPatch) -> RemoteSource:
    """Open an object as the library of the store reads it."""
    with monkeypatch.context() as patch:
        patch.setattr(remote_source, "signer_of", lambda *_: None)
        return RemoteSource(Url(url))


def average(folder: Path, *names: str, **options: object) -> None:
    """Average two checkpoints, and compare the result."""
    ema_cli.average(
        list(names) or [ONE, TWO],
        decay=DECAY,
        output=folder / "ema.safetensors",
        **options,  # type: ignore[arg-type]
    )
    assert_fold(load(folder / "ema.safetensors"), states_of(2, 100_000))


def test_every_request_is_for_bytes(bench: Bench, tmp_path: Path) -> None:
    """A folder is listed; after that nothing is described, and each object is opened with one request."""
    asked = log(bench)
    average(tmp_path, f"s3://{BUCKET}/run")
    of_objects = [one for one in asked if ".safetensors" in one.path]
    assert {(one.method, SIGNED in one.path) for one in of_objects} == {("GET", True)}
    assert [one.range for one in of_objects].count((0, 65535)) == 2
    assert all(one.headers["If-Match"] for one in of_objects if one.range != (0, 65535))
    assert {one.headers["Accept-Encoding"] for one in of_objects} == {"identity"}
    asked.clear()
    is_remote_folder(Url(f"s3://{BUCKET}/run/ckpt_100.safetensors"))
    RemoteSource(Url(ONE)).raise_if_changed()
    assert [one.range for one in asked] == [(0, 65535)]


def test_a_named_object_is_no_folder(bench: Bench) -> None:
    """One byte tells it. The library tells what a missing object, and a folder with a dot in its name, are."""
    asked = log(bench)
    assert not is_remote_folder(Url(ONE))
    assert [(one.method, one.range) for one in asked] == [("GET", (0, 0))]
    bench.proxy.plan = Plan()
    put(bench, "dotted.run/a.pt", b"data")
    assert is_remote_folder(Url(f"s3://{BUCKET}/dotted.run"))
    assert not is_remote_folder(Url(f"s3://{BUCKET}/none.pt"))
    with pytest.raises(NothingMatched, match=r'there is no "s3://runs/none\.pt"'):
        RemoteSource(Url(f"s3://{BUCKET}/none.pt"))
    with pytest.raises(InputRefused, match="is not a file of known size"):
        RemoteSource(Url(f"s3://{BUCKET}/dotted.run"))


def put(bench: Bench, key: str, data: bytes, **options: str) -> dict[str, str]:
    """Store an object."""
    import boto3

    client = boto3.client("s3", endpoint_url=bench.proxy.address)
    answer: dict[str, str] = client.put_object(Bucket=BUCKET, Key=key, Body=data, **options)
    return answer


@pytest.mark.parametrize(
    "key", ["a.pt", "a b+ü&=%41#?x/c%2Fz.pt", "~a'(b)*!.pt", "a:b@c;d,$|.pt", "a\\b\t.pt", "empty.pt"]
)
def test_an_object_is_the_same_by_both_ways(key: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, identity, version and size are those that the library reports: an output stays up to date."""
    data = b"" if key == "empty.pt" else key.encode() * 9
    put(bench, key, data)
    signed, plain = RemoteSource(Url(f"s3://{BUCKET}/{key}")), from_library(f"s3://{BUCKET}/{key}", monkeypatch)
    assert isinstance(signed._web, s3_object.S3Object) is bool(data)
    assert plain._web is None
    assert signed.read(0, len(data)) == plain.read(0, len(data)) == data
    assert signed.state == plain.state
    assert signed.version > 1e18  # nanoseconds since 1970


def test_an_output_of_the_library_is_up_to_date(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that was written when the library read the objects has the same inputs."""
    with monkeypatch.context() as patch:
        patch.setattr(remote_source, "signer_of", lambda *_: None)
        average(tmp_path)
    before = (tmp_path / "ema.safetensors").stat().st_mtime_ns
    asked = log(bench)
    average(tmp_path)
    assert (tmp_path / "ema.safetensors").stat().st_mtime_ns == before
    assert any(SIGNED in one.path for one in asked)


def test_a_version_of_an_object_can_be_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its address names it, too."""
    import boto3

    client = boto3.client("s3", endpoint_url=bench.proxy.address)
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    first, second = (put(bench, "versions.pt", data)["VersionId"] for data in (b"first", b"second one"))
    for version, data in ((first, b"first"), (second, b"second one")):
        monkeypatch.setattr(stores, "_STORES", {})
        source = RemoteSource(Url(f"s3://{BUCKET}/versions.pt?versionId={version}"))
        assert source._web is not None
        assert source.read(0, source.size()) == data
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Suspended"})


@pytest.mark.parametrize("mode", ["401", "403", "307", "301", "400"])
def test_the_library_reads_what_is_refused_at_an_address(mode: str, bench: Bench, tmp_path: Path) -> None:
    """A bucket that refuses signed addresses is read all the same, and is not asked for them again and again."""

    def answer(asked: Asked) -> None:
        more = {"location": "http://127.0.0.1:9/"} if mode == "307" else {}
        asked.begin(int(mode), [], content_length="0", **more)

    plan = refuse(bench, "403")
    plan.mode = answer
    average(tmp_path)
    assert 2 <= len(plan.seen) <= 4
    seen = len(plan.seen)
    RemoteSource(Url(ONE)).close()
    assert len(plan.seen) == seen


def test_an_address_that_is_refused_later_is_signed_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signature may end before its time: the library reads that range, and the next address is a new one."""
    source = RemoteSource(Url(ONE))
    signed: list[str] = []
    sign = s3fs.S3FileSystem.sign

    def noted(store: object, path: str, **options: object) -> object:
        signed.append(path)
        return sign(store, path, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "sign", noted)
    plan = refuse(bench, "403", times=1)
    assert source.read(100_000, 8) == bytes(from_bucket(bench)[100_000:100_008])
    assert len(plan.seen) == 1
    asked = log(bench)
    assert source.read(300_000, 8) == bytes(from_bucket(bench)[300_000:300_008])
    assert [SIGNED in one.path for one in asked if one.range] == [True]
    assert signed == [f"{BUCKET}/run/ckpt_100.safetensors"]


def from_bucket(bench: Bench) -> bytes:
    """Return the first checkpoint."""
    return bench.get("run/ckpt_100.safetensors")


def test_what_stays_refused_has_the_reason_and_the_hint_of_the_store(bench: Bench) -> None:
    """The error is that of the library, for an object that is opened, and for one that was open."""
    opened = RemoteSource(Url(ONE))
    bench.proxy.plan = Plan(mode=MODES["403"])
    for ask in (lambda: opened.read(100_000, 8), lambda: RemoteSource(Url(ONE)), lambda: is_remote_folder(Url(TWO))):
        with pytest.raises(InputRefused, match=r"cannot be read.*[Ff]orbidden") as raised:
            ask()
        assert raised.value.hint == "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        assert SIGNED not in raised.value.message


@pytest.mark.parametrize("status", [500, 503])
def test_a_busy_store_is_asked_more_often_than_a_failing_one(status: int, bench: Bench) -> None:
    """A bucket with too many requests may answer that it is busy for half a minute."""

    def answer(asked: Asked) -> None:
        asked.begin(status, [], content_length="0")

    source = RemoteSource(Url(ONE))
    bench.proxy.plan = Plan(mode=answer, times=7)
    if status == 503:
        assert source.read(100_000, 8) == from_bucket(bench)[100_000:100_008]
    else:
        with pytest.raises(InputChanged, match="500 Internal Server Error"):
            source.read(100_000, 8)
    assert len(bench.proxy.plan.seen) == (7 if status == 503 else 5)


def test_a_changed_object_is_an_error(bench: Bench) -> None:
    """The store is asked for the version that was opened."""
    put(bench, "changing.pt", bytes(300_000))
    source = RemoteSource(Url(f"s3://{BUCKET}/changing.pt"))
    put(bench, "changing.pt", bytes(299_999) + b"1")
    with pytest.raises(InputChanged, match=r'"s3://runs/changing\.pt" was changed while it was being read'):
        source.read(100_000, 8)


def test_addresses_are_signed_again_in_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address is not used for longer than the credentials that signed it last."""
    source = RemoteSource(Url(ONE))
    asked = log(bench)
    for later in (0, 299, 301, 302, 700):
        clock = SimpleNamespace(monotonic=lambda later=later: 3e9 + later)
        monkeypatch.setattr(s3_object, "time", clock)
        client = source._web._signer.s3  # type: ignore[union-attr]
        client._request_signer._credentials.access_key = f"key-{later}"
        source._web.read(100_000, 100_008)  # type: ignore[union-attr]
    keys = [re.search("X-Amz-Credential=key-([0-9]+)", one.path) for one in asked]
    assert [key and key[1] for key in keys] == ["0", "0", "301", "301", "700"]


def test_the_region_of_a_bucket_is_found_once(bench: Bench, tmp_path: Path) -> None:
    """A bucket of another region refuses other signatures: the library learns it, and addresses are of that region."""
    scope = re.compile("/|%2F")
    seen: list[Asked] = []

    def is_elsewhere(asked: Asked) -> bool:
        signed = scope.split(f"{asked.path} {asked.headers.get('Authorization', '')}")
        return "eu-west-9" not in signed

    def answer(asked: Asked) -> None:
        asked.read()
        body = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-9</Region></Error>"
        head = asked.method == "HEAD"
        asked.begin(400, [], content_length=str(len(body)), x_amz_bucket_region="eu-west-9")
        asked.send(b"" if head else body)

    def located(asked: Asked) -> None:
        seen.append(asked)
        if is_elsewhere(asked):
            answer(asked)
            return
        status, headers, body = asked.forward()
        length = {} if asked.method == "HEAD" else {"content_length": str(len(body))}
        asked.begin(status, headers, x_amz_bucket_region="eu-west-9", **length)
        asked.send(body)

    bench.proxy.plan = Plan(mode=located)
    average(tmp_path)
    assert sum(one.method == "HEAD" and "ckpt" not in one.path for one in seen) <= 2
    seen.clear()
    average(tmp_path, force=True)
    assert seen
    assert all(SIGNED in one.path and "eu-west-9" in one.path for one in seen)


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize(
    ("options", "environment", "signs"),
    [
        ({}, {}, True),
        ({"endpoint_url": "http://127.0.0.1:1"}, {}, True),
        ({"config_kwargs": {"s3": {"addressing_style": "virtual"}}}, {}, True),
        ({"config_kwargs": {"read_timeout": 5}}, {}, False),
        ({"config_kwargs": {"proxies": {"http": "http://127.0.0.1:9"}}}, {}, False),
        ({"client_kwargs": {"verify": False}}, {}, False),
        ({"requester_pays": True}, {}, False),
        ({"s3_additional_kwargs": {"SSECustomerAlgorithm": "AES256"}}, {}, False),
        ({}, {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "example.org"}, False),
        ({}, {"HTTP_PROXY": "http://127.0.0.1:9"}, True),
        ({}, {"AWS_ENDPOINT_URL": "https://127.0.0.1:1", "AWS_CA_BUNDLE": "/none/ca.pem"}, False),
    ],
)
def test_settings_that_addresses_do_not_follow_are_left_to_the_library(
    options: dict[str, object],
    environment: dict[str, str],
    signs: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Timeouts, proxies, certificates and further headers are those of its own requests."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3_object, "user_options", lambda *_: options.get("config_kwargs", {}))
    store = s3fs.S3FileSystem(**options, skip_instance_cache=True)
    assert s3_object.signer_of(store, f"{BUCKET}/a.pt") is (store if signs else None)
    for path in (BUCKET, "run--x-s3/a.pt", "arn:aws:s3:us-west-2:123456789012:accesspoint/mine/a.pt"):
        assert s3_object.signer_of(store, path) is None


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({}, "X-Amz-Algorithm"),
        ({"cache_regions": True}, "X-Amz-Algorithm"),
        ({"config_kwargs": {"signature_version": "s3v4"}}, "X-Amz-Algorithm"),
        ({"config_kwargs": {"signature_version": "s3"}}, "AWSAccessKeyId"),
        ({"anon": True}, ""),
    ],
)
def test_addresses_are_signed_as_configured(options: dict[str, object], parameter: str) -> None:
    """By version 4 if nothing else is configured; anonymous addresses have no signature."""
    store = s3fs.S3FileSystem(**options, skip_instance_cache=True)
    signer = s3_object.signer_of(store, f"{BUCKET}/a.pt")
    query = parse_qs(urlsplit(signer.sign(f"{BUCKET}/a.pt")).query)
    assert (parameter in query) if parameter else not query


def test_settings_of_the_web_are_not_sent_to_the_store(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password for web servers is for them alone."""
    monkeypatch.setitem(__import__("fsspec").config.conf, "http", {"headers": {"X-Secret": "planted"}})
    s3_object._client.cache_clear()
    asked = log(bench)
    RemoteSource(Url(ONE)).read(100_000, 8)
    s3_object._client.cache_clear()
    assert asked
    assert not [one for one in asked if one.headers.get("X-Secret")]


@pytest.mark.parametrize("mode", ["403", "404", "500", "429, an hour", "half", "other range", "garbage", "reset"])
def test_a_signature_is_not_shown(mode: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No message, warning, identity or report has a part of the address."""
    monkeypatch.setattr(retries, "RETRYING_SECONDS", 0)
    average(tmp_path)
    source = RemoteSource(Url(ONE))
    assert source._web is not None
    shown = [str(source.identity), source.name, (tmp_path / "ema.report.json").read_text()]
    shown.append((tmp_path / "ema.safetensors").read_bytes()[:20_000].decode(errors="replace"))
    bench.proxy.plan = Plan(mode=MODES[mode])
    with pytest.raises((InputChanged, InputRefused, NothingMatched)) as raised:
        ema_cli.average([ONE, TWO], decay=0.25, output=tmp_path / "other.safetensors")
    shown.append(f"{raised.value.message} {raised.value.hint}")
    with pytest.raises((InputChanged, InputRefused)) as later:
        source.read(100_000, 8)
    shown.append(f"{later.value.message} {later.value.hint}")
    parts = {"X-Amz", *parse_qs(urlsplit(source._web.address.address).query).get("X-Amz-Signature", ())}
    assert len(parts) == 2
    assert not [(part, text) for part in parts for text in shown if part in text]
