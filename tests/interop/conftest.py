"""What the tests with real makers share: an environment without network, telemetry or a home of its own."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark these tests, and keep those of a module in one process, which imports their framework once."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.interop)
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="module", autouse=True)
def _quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep frameworks, which are imported inside the tests, from the network and from the caches of the user."""
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {**QUIET, "HOME": str(home), "HF_HOME": str(home / "huggingface")}.items():
            environment.setenv(name, value)
        yield
    gc.collect()
    gc.freeze()  # the framework stays, and later collections need not look through it
