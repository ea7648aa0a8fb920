"""Choose the target of an output or a report: a file or a folder, on a disk or in a store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ema_cli.events import Listener, ignore
from ema_cli.records.plan import PlannedOutput
from ema_cli.storage.locations import STREAMED, Location
from ema_cli.storage.url import Url
from ema_cli.write.file import OutputFile
from ema_cli.write.old_folder import OldFolder
from ema_cli.write.small_file import SmallFile
from ema_cli.write.target import SmallTarget, StoppableTarget, Target

if TYPE_CHECKING:
    from ema_cli.write.resumption import ResumableFile


def make_small(path: Location) -> SmallTarget:
    """Return the target of a small file."""
    if isinstance(path, Url):
        from ema_cli.write.uploads import SmallUpload  # noqa: PLC0415 - fsspec

        return SmallUpload(path)
    return SmallFile(path)


def make_target(output: PlannedOutput, old: OldFolder | None = None, listener: Listener = ignore) -> Target:
    """Return the target of an output that replaces the folder ``old``, if that was found on a disk."""
    if isinstance(output.path, Url):
        from ema_cli.write.remote_folder import RemoteFolder, make_upload  # noqa: PLC0415 - fsspec

        return RemoteFolder(output, output.path) if output.folder else make_upload(output.path, output.files[0])
    if output.placement is not None:
        from ema_cli.write.placed_targets import make_placed  # noqa: PLC0415 - not the usual format

        return make_placed(output, old, listener)
    if output.folder:
        from ema_cli.write.folder import OutputFolder  # noqa: PLC0415 - most outputs are files

        return OutputFolder(output, old)
    (file,) = output.files
    return OutputFile(output.path, file.header, file.data_bytes, read_back_whole=output.read_back_whole)


def stop_uploads(targets: Iterable[Target]) -> None:
    """Let no thread wait any longer for a store to accept what is written."""
    for target in targets:
        if isinstance(target, StoppableTarget):
            target.stop()


def make_resumable(output: PlannedOutput) -> ResumableFile:
    """Return the target of an output that is kept when the run is interrupted."""
    if output.placement is not None:
        from ema_cli.write.placed_targets import make_resumable_placed  # noqa: PLC0415 - not the usual format

        return make_resumable_placed(output)
    from ema_cli.write.resumption import ResumableFile  # noqa: PLC0415 - with --resume alone

    (file,) = output.files
    return ResumableFile(output.local, file.header, file.data_bytes, read_back_whole=output.read_back_whole)


def is_spooled(output: PlannedOutput) -> bool:
    """Return whether an output is built in a temporary file before it is sent to its store."""
    return isinstance(output.path, Url) and output.path.scheme not in STREAMED
