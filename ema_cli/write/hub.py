"""Files in repositories of the Hugging Face Hub: what belongs together is one commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import BinaryIO

from ema_cli.storage.remote.stores import store_of
from ema_cli.storage.url import Url


def commit(files: Mapping[Url, BinaryIO], removed: Sequence[Url]) -> None:
    """Add files to a repository, or replace those that are there, and remove others, in one commit.

    Raises:
        Exception: what huggingface_hub says.

    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, utils  # noqa: PLC0415

    store, path = store_of(next(iter(files)))
    place = store.resolve_path(path)
    operations: list[object] = []
    for url, file in files.items():
        file.seek(0)
        operations.append(CommitOperationAdd(path_in_repo=_inside(url), path_or_fileobj=file))
    operations += [CommitOperationDelete(path_in_repo=_inside(url)) for url in removed]
    quiet = utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    try:
        HfApi(endpoint=store.endpoint, token=store.token).create_commit(
            place.repo_id,
            operations,
            commit_message=f"Add {', '.join(url.name for url in files)}"[:72],
            repo_type=place.repo_type,
            revision=place.revision,
        )
    finally:
        if not quiet:
            utils.enable_progress_bars()


def _inside(url: Url) -> str:
    """Return the path of a file inside its repository."""
    store, path = store_of(url)
    return str(store.resolve_path(path).path_in_repo)
