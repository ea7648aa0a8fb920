"""The files that will be written: their names, and the metadata in their headers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from ema_cli._version import __version__
from ema_cli.errors import UsageError
from ema_cli.formats.safetensors import build_header
from ema_cli.naming import RUN_FIELDS, fill_output_name, run_fields
from ema_cli.options.average import Options
from ema_cli.options.declaration import declared
from ema_cli.options.output_options import OUR_METADATA
from ema_cli.options.stored_method import store_method
from ema_cli.planning.shards import plan_files
from ema_cli.records.files import Placement, PlannedFile, SideFile
from ema_cli.records.live_snapshot import FROM_SNAPSHOT
from ema_cli.records.plan import PlannedOutput, PlannedTensor
from ema_cli.records.series import Checkpoint, Series
from ema_cli.storage.locations import Location, expanded, full_name, locate
from ema_cli.text import quoted
from ema_cli.weights.methods import Method, Weighting


def plan_outputs(
    weightings: Sequence[Weighting],
    series: Series,
    tensors: Sequence[PlannedTensor],
    options: Options,
    *,
    side_files: Sequence[SideFile] = (),
    lacking: Collection[str] = (),
) -> tuple[PlannedOutput, ...]:
    """Return the output of each average: a file, or a folder with ``side_files``.

    The metadata list the tensors ``lacking``: they are copied, because some checkpoint lacks them.

    Raises:
        UsageError: two outputs would have one name, or a name has a field that the average does not have.

    """
    if options.output_format != "safetensors":
        placement = _place(weightings, series, tensors, options)
        return _distinct(_plan_placed(weighting, series, placement, options) for weighting in weightings)
    shared = {name: tensor.name for tensor in tensors for name in tensor.stands_for}
    shared |= {f"{OUR_METADATA}lacking": json.dumps(sorted(lacking))} if lacking else {}
    return _distinct(
        _plan_output(tensors, shared | _numbers(tensors, k), weighting, series, options, side_files=side_files)
        for k, weighting in enumerate(weightings)
    )


def _distinct(planned: Iterable[PlannedOutput]) -> tuple[PlannedOutput, ...]:
    """Return the outputs; raise ``UsageError`` if two have one name."""
    outputs = tuple(planned)
    paths = [output.path for output in outputs]
    if len(set(paths)) != len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UsageError(f"several averages would be written to {quoted(str(twice))}", hint="run them one at a time")
    return outputs


def _place(
    weightings: Sequence[Weighting], series: Series, tensors: Sequence[PlannedTensor], options: Options
) -> Placement:
    """Return the files of outputs that are no safetensors files: the same for all averages."""
    if options.output_format == "same":
        from ema_cli.planning.same_format import place_in_copy  # noqa: PLC0415 - not the usual format

        _refuse_stale_metadata(series.members[-1].checkpoint)
        return place_in_copy(weightings, series.members, tensors, options)
    from ema_cli.planning.dcp_format import place_in_dcp, saved_paths  # noqa: PLC0415 - not the usual format

    return place_in_dcp(tensors, saved_paths(series.members[-1].checkpoint))


def _refuse_stale_metadata(last: Checkpoint) -> None:
    """Raise if a copy would have metadata of this program that describe the last checkpoint, and not the copy."""
    if last.has_our_metadata or last.is_snapshot:
        kind = "a snapshot of a live EMA" if last.is_snapshot else "an output of ema-avg"
        raise UsageError(
            f"--format same: the last checkpoint, {quoted(str(last.path))}, is {kind}, and the copy would have its "
            "metadata, which describe another average",
            hint="--format safetensors",
        )


def _plan_placed(weighting: Weighting, series: Series, placement: Placement, options: Options) -> PlannedOutput:
    """Return an output that is no safetensors file."""
    return PlannedOutput(
        weighting=weighting,
        path=output_path(weighting.method, options),
        files=(),
        folder=placement.folder,
        read_back_whole=options.read_back == "all",
        beside=placement.beside,
        format=options.output_format,
        placement=placement,
        fingerprint=_options_fingerprint(weighting.method, series, options),
    )


def _plan_output(
    tensors: Sequence[PlannedTensor],
    shared: Mapping[str, str],
    weighting: Weighting,
    series: Series,
    options: Options,
    *,
    side_files: Sequence[SideFile],
) -> PlannedOutput:
    fingerprint = _options_fingerprint(weighting.method, series, options)
    metadata = {**shared, **_metadata(weighting.method, series, options, fingerprint)}
    path = output_path(weighting.method, options)
    if options.max_shard_size is None:
        data_bytes = sum(tensor.nbytes for tensor in tensors)
        whole = PlannedFile(name=path.name, header=build_header(tensors, metadata)[0], begin=0, data_bytes=data_bytes)
        return PlannedOutput(
            weighting=weighting,
            path=path,
            files=(whole,),
            read_back_whole=options.read_back == "all",
            fingerprint=fingerprint,
        )
    stem = series.members[-1].checkpoint.stem
    files, index = plan_files(tensors, metadata, stem, options.max_shard_size)
    return PlannedOutput(
        weighting=weighting,
        path=path,
        files=files,
        folder=True,
        read_back_whole=options.read_back == "all",
        beside=(*index, *side_files),
        fingerprint=fingerprint,
    )


def output_path(method: Method, options: Options) -> Location:
    """Return the path of an average's output.

    Raises:
        UsageError: its name has a field that the average does not have.

    """
    values = {**method.name_fields(), **_run_fields(options)}
    return locate(fill_output_name(full_name(options.destination), values))


def _run_fields(options: Options) -> dict[str, object]:
    """Return the values of ``{run}`` and ``{name}``, if the output has them: from a batch job or the one run folder."""
    stray = next((field for field in RUN_FIELDS if f"{{{field}}}" in str(options.destination)), None)
    if stray is None:
        return {}
    run = expanded(options.paths[0] if options.run is None else options.run)
    if options.run is None and (len(options.paths) > 1 or not Path(run).is_dir()):
        message = (
            f"the output {quoted(str(options.destination))}: {{{stray}}} needs one run folder as the only argument"
        )
        raise UsageError(message, hint=f"name the folder of a run, or remove {{{stray}}} from the output")
    return run_fields(run)


def _metadata(method: Method, series: Series, options: Options, fingerprint: str) -> dict[str, str]:
    """Return the metadata of an output."""
    folded = series.folded
    steps = [checkpoint.step for checkpoint in folded if checkpoint.step is not None]
    known = len(steps) == len(folded)
    ours: dict[str, object | None] = {
        "version": __version__,
        **store_method(method),
        **options.kept_on_continue(),
        "checkpoints": len(folded),
        "folded": json.dumps([checkpoint.name for checkpoint in folded]),
        "steps": ",".join(map(str, steps)) if known else None,
        "step_unit": next((member.step.unit for member in series.members if member.step), None) if known else None,
        "first_step": steps[0] if known else None,
        "last_step": steps[-1] if known else None,
        "options_fingerprint": fingerprint,
    }
    written = {f"{OUR_METADATA}{key}": str(value) for key, value in ours.items() if value is not None}
    if series.timeline.after_live:
        written[FROM_SNAPSHOT] = folded[0].name
    return {**options.public_metadata, **written, "format": "pt"}


def _numbers(tensors: Sequence[PlannedTensor], k: int) -> dict[str, str]:
    """Return a digest of the numbers that the factors of LoRA updates are multiplied by; configurations decide them."""
    numbers = {tensor.name: (t.inputs, t.factors[k]) for tensor in tensors if (t := tensor.pieces) is not None}
    digest = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:32]
    return {f"{OUR_METADATA}lora_numbers": digest} if numbers else {}


def _options_fingerprint(method: Method, series: Series, options: Options) -> str:
    """Hash every option that decides the bytes of an output; weights given by the user in fold order."""
    values = [(one, getattr(options, one.name)) for one in declared(type(options))]
    deciding = {
        **method.plain(),
        "weights": series.timeline.given_weights or options.weights,
        **{one.name: one.plain(value) for one, value in values if one.decides(value)},
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:32]
