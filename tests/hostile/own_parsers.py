"""The parsers of this program's own files: reports, journals, previous averages, settings."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
from safetensors.numpy import save_file

import ema_cli
from ema_cli.cli.app import app
from ema_cli.cli.config.manifest import read_manifest
from ema_cli.cli.config.settings import from_table
from ema_cli.cli.config.sources import read_file as read_config
from ema_cli.continuation.previous_average import open_previous
from ema_cli.errors import VerificationFailed
from ema_cli.options.average import Options
from ema_cli.options.declaration import Option
from ema_cli.records.fold_results import TensorOutcome, TensorStatistics
from ema_cli.report.beside import read_report
from ema_cli.verification.checks import verify
from ema_cli.write.journal import Journal
from tests.hostile.parser import Parser, simple
from tests.hostile.safetensors_cases import file
from tests.hostile.tokens import JSON, TOML, varied

_RUN = "a run"


def own_parsers(folder: Path) -> dict[str, Parser]:
    """Return these parsers; those that open files by name get them in ``folder``."""
    output = _average(folder)
    keys = _keys()
    return {
        "report": _report(output),
        "earlier": _previous(output),
        "journal": _journal(folder),
        "config": _config(folder, keys),
        "manifest": _manifest(folder, keys),
    }


def _average(folder: Path) -> Path:
    """Make an average with its report."""
    for number in (1, 2):
        save_file({"w": np.full(4, number, np.float32)}, folder / f"c{number}.safetensors")
    output = folder / "ema.safetensors"
    ema_cli.average([str(folder / f"c{number}.safetensors") for number in (1, 2)], decay=0.5, output=str(output))
    return output


def _report(output: Path) -> Parser:
    """The report of an average, as ``verify`` and the next run read it."""
    path = output.with_name("ema.report.json")
    seeds = [path.read_bytes()]

    def run(data: bytes) -> None:
        path.write_bytes(data)
        read_report(output)
        if not verify(output, samples=1).ok:
            raise VerificationFailed("it does not fit the average")

    return simple(seeds, JSON, run)


def _previous(output: Path) -> Parser:
    """The metadata of an average that is continued."""
    whole = output.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    values = [value.encode() for value in header["__metadata__"].values()]
    path = output.with_name("earlier.safetensors")

    def mutate(seed: bytes, random: Random) -> bytes:
        metadata = dict(header["__metadata__"])
        for _ in range(random.choice((1, 1, 2))):
            name = random.choice(sorted(metadata))
            metadata[name] = varied(metadata[name].encode(), values, JSON, random).decode("utf-8", "replace")
        if random.randrange(8) == 0:
            metadata.pop(random.choice(sorted(metadata)))
        return file(json.dumps({**header, "__metadata__": metadata}).encode(), seed[len(seed) - len(data) :])

    def run(data: bytes) -> None:
        path.write_bytes(data)
        open_previous(path, Options(paths=(str(path),), continue_from=path)).checkpoint.index.close()

    return Parser(seeds=[whole], mutate=mutate, run=run)


def _journal(folder: Path) -> Parser:
    """The journal of an interrupted run, with checksums that are right."""
    path = folder / "resumed.safetensors"
    journal = Journal(path, _RUN)
    statistics = TensorStatistics(norm=1.5, drift=0.1, cosine=None)
    done = [
        TensorOutcome(number=n, written_crc32=(1, 2), read_crc32=(3, 4), statistics=(statistics,) * 2, sample=b"abc")
        for n in range(3)
    ]
    journal.begin(done)
    journal.close()
    seeds = [journal.path.read_bytes()]
    documents = [line[9:-1] for line in seeds[0].splitlines(keepends=True)]

    def mutate(seed: bytes, random: Random) -> bytes:
        if random.randrange(8) == 0:
            return varied(seed, seeds, JSON, random)
        made = list(documents)
        made[random.randrange(len(made))] = varied(random.choice(made), documents, JSON, random).replace(b"\n", b"")
        return b"".join(b"%08x %s\n" % (zlib.crc32(text), text) for text in made)

    def run(data: bytes) -> None:
        journal.path.write_bytes(data)
        journal.read()

    return Parser(seeds=seeds, mutate=mutate, run=run)


def _keys() -> Sequence[Option]:
    from typer.main import get_command  # noqa: PLC0415 - typer is slow to import

    command = get_command(app).commands["plan"]  # type: ignore[attr-defined]
    options: Sequence[Option] = command.callback.options
    return options


def _config(folder: Path, keys: Sequence[Option]) -> Parser:
    """A configuration file; its values are checked against the options of the command."""
    path = folder / "ema-avg.toml"
    seeds = [
        b'half-life = 500\nper = "step"\ndecay = [0.9, 0.99]\noutput = "ema.safetensors"\n',
        b'exclude = ["a.*", "b"]\non-missing = "last"\nverbose = true\nmax-shard-size = "5GB"\n',
    ]

    def run(data: bytes) -> None:
        path.write_bytes(data)
        from_table(read_config(path).table, keys, path)

    return simple(seeds, TOML, run)


def _manifest(folder: Path, keys: Sequence[Option]) -> Parser:
    """The manifest of a batch."""
    path = folder / "jobs.toml"
    seeds = [
        b'[defaults]\nhalf-life = 4\n\n[[job]]\nrun = "runs/a"\n\n[[job]]\npaths = ["runs/b/*.pt"]\ndecay = 0.9\n',
        b'[[job]]\nrun = "a"\nper = "step"\noutput = "out/{run}.safetensors"\n',
    ]

    def run(data: bytes) -> None:
        path.write_bytes(data)
        read_manifest(path, keys)

    return simple(seeds, TOML, run)
