"""The parsers of checkpoint folders: indexes, what trainers store with the weights, DCP, files of ranks, layouts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random

from ema_cli.formats.dcp.metadata import parse_metadata
from ema_cli.formats.dcp.saved_tree import choose
from ema_cli.formats.folder_formats import read_folder
from ema_cli.formats.torch_ranks.folder import read_torch_ranks
from ema_cli.storage.extents import LayoutPool
from tests.hostile.cases import Case
from tests.hostile.file_parsers import archive, pickles
from tests.hostile.folder_cases import DATA, PIECE, dcp_at, dcp_metadata, dcp_place
from tests.hostile.in_memory import MemoryFolder
from tests.hostile.opcodes import call, glob, mapping, num, numbers, stop, storage, tensor, text, tup
from tests.hostile.parser import Parser, simple
from tests.hostile.rank_cases import RANK_NAMES, dtensor, shard, sharded
from tests.hostile.safetensors_cases import entry, file, one
from tests.hostile.tokens import JSON, PICKLE, lines, varied
from tests.hostile.zips import checkpoint

_LARGEST_SEED = 20_000
_SHARDS = {
    "model-00001-of-00002.safetensors": one(name=b"a"),
    "model-00002-of-00002.safetensors": one(name=b"b"),
}
_MAP = dict(zip("ab", _SHARDS, strict=True))
_RANKS = [f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)]


def folder_parsers(cases: Sequence[Case], folder: Path) -> dict[str, Parser]:
    """Return the parsers of folders; ``folder`` is where seeds are made."""
    return {
        "index": _index(),
        "beside": _side_files(),
        "dcp": _dcp(cases, folder),
        "pieces": _pieces(),
        "ranks": _ranks(),
        "rank-files": _rank_files(),
        "trainers": _trainers(),
        "partitions": _partitions(),
        "layouts": _layouts(),
    }


def _read(files: Mapping[str, bytes]) -> None:
    read_folder(MemoryFolder(files), (), LayoutPool())


def _index() -> Parser:
    """The index of a folder with two shards."""
    seeds = [
        json.dumps({"metadata": {"total_size": 32}, "weight_map": _MAP}).encode(),
        json.dumps({"weight_map": {"a": _MAP["a"]}}).encode(),
    ]
    return simple(seeds, JSON, lambda data: _read({"model.safetensors.index.json": data, **_SHARDS}))


def _side_files() -> Parser:
    """The files that a trainer and a library store with the weights: the state, the configuration."""
    trained = {"global_step": 5, "epoch": 1.5, "log_history": [{"loss": 1.5, "step": 5}], "is_local": True}
    configured = {"model_type": "x", "quantization_config": {"quant_method": "gptq", "bits": 4}, "torch_dtype": "f"}
    seeds = [json.dumps(trained).encode(), json.dumps(configured).encode(), b'{"quantization_config": null}']
    return simple(
        seeds,
        JSON,
        lambda data: _read({"model.safetensors": one(), "trainer_state.json": data, "config.json": data}),
    )


def _dcp(cases: Sequence[Case], folder: Path) -> Parser:
    """The metadata of folders of torch.distributed.checkpoint."""
    seeds = []
    for number, case in enumerate(case for case in cases if case.name.startswith(("dcp_", "good_dcp"))):
        made = folder / f"dcp{number}"
        case.make(made)
        with contextlib.suppress(FileNotFoundError):
            seeds.append((made / ".metadata").read_bytes())
    seeds = [seed for seed in seeds if 0 < len(seed) < _LARGEST_SEED]
    return simple(seeds, PICKLE, lambda data: choose(parse_metadata(data), ()))


def _pieces() -> Parser:
    """The pieces to which good metadata lead; their length is the declared length."""
    values = [stop(tensor()), *pickles()[:2]]

    def mutate(seed: bytes, random: Random) -> bytes:
        return varied(seed, [PIECE], PICKLE, random) if random.randrange(4) == 0 else archive(random, values)

    def run(data: bytes) -> None:
        places = dcp_at() + dcp_place(length=max(1, len(data)))
        _read({".metadata": dcp_metadata(places=places), DATA: data})

    return Parser(seeds=[PIECE], mutate=mutate, run=run)


def _ranks() -> Parser:
    """The file of one of two ranks; each rank has half of a tensor."""
    infos = [json.dumps({"w": {"saved_offsets": [place]}}).encode() for place in (0, 4)]
    headers = [_of_rank(info) for info in infos]
    other = file(headers[1], bytes(16))

    def mutate(seed: bytes, random: Random) -> bytes:
        if random.randrange(2):
            return file(_of_rank(varied(infos[0], infos, JSON, random)), bytes(16))
        return file(varied(headers[0], headers, JSON, random), bytes(16)) if random.randrange(4) else seed[:-1]

    seeds = [file(headers[0], bytes(16))]
    return Parser(seeds=seeds, mutate=mutate, run=lambda data: _read(dict(zip(_RANKS, (data, other), strict=True))))


def _of_rank(info: bytes) -> bytes:
    """Return the header of a rank's file with its declaration of its pieces."""
    info_json = json.dumps(info.decode("utf-8", "surrogateescape")).encode()
    return b'{"__metadata__":{"DCP_SHARDING_INFO":' + info_json + b'},"w":' + entry() + b"}"


def _rank_files() -> Parser:
    """The pickle of the second of two ranks; each has half of a tensor, or a copy of it."""
    kinds = {
        "dtensor": (dtensor(0), dtensor(1)),
        "strided": (dtensor(0), dtensor(1, placements=tup(shard("_StridedShard", split_factor=num(1))))),
        "sharded": (sharded(numbers((0,))), sharded(numbers((4,)))),
        "copies": (tensor(), tensor()),
    }
    firsts = [checkpoint(pickle=stop(mapping(w=first))) for first, _ in kinds.values()]
    seeds = [stop(mapping(w=second)) for _, second in kinds.values()]

    def run(data: bytes) -> None:
        second = checkpoint(pickle=data)
        files = {RANK_NAMES[0]: firsts[len(data) % len(firsts)], RANK_NAMES[1]: second}
        read_torch_ranks(MemoryFolder(files), (), LayoutPool())

    return simple(seeds, PICKLE, run)


def _trainers() -> Parser:
    """The model file of DeepSpeed, with its shapes of parameters, and that of Megatron."""
    empty = tensor(storage(elements=0), shape=(0,))
    shapes = b"](" + mapping(w=call(glob("torch", "Size"), tup(num(4)))) + b"e"
    megatron = mapping(language_model=mapping(encoder=mapping(w=tensor())))
    seeds = [
        stop(mapping(module=mapping(w=tensor()), param_shapes=shapes, global_steps=num(7), optimizer=b"N")),
        stop(mapping(module=mapping(w=empty), param_shapes=shapes)),
        stop(mapping(model=megatron, iteration=num(9), args=glob("argparse", "Namespace") + b")\x81}b")),
    ]
    names = ("mp_rank_00_model_states.pt", "mp_rank_00/model_optim_rng.pt")
    return simple(seeds, PICKLE, lambda data: _read({names[len(data) % 2]: checkpoint(pickle=data)}))


def _partitions() -> Parser:
    """The states of two ranks of DeepSpeed: one file is mutated, and stands for any of the four."""
    of_models = [_of_model(shapes) for shapes in ((4,), (2, 3), ())]
    of_optimizers = [
        _of_optimizer(count=num(2)),
        _of_optimizer(count=b"](" + num(2) + num(2) + b"e"),
        _of_optimizer(zero=2),
    ]
    seeds = [*of_models, *of_optimizers]
    names = [f"zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt" for rank in (0, 1) for kind in ("model", "optim")]
    good = [checkpoint(pickle=of_models[0]), checkpoint(pickle=of_optimizers[0])] * 2

    def run(data: bytes) -> None:
        kind = int(b"optimizer_state_dict" in data)
        files = {**dict(zip(names, good, strict=True)), names[kind + 2 * (len(data) % 2)]: checkpoint(pickle=data)}
        _read(files)
        if kind == 0:
            one = files[names[0]]
            others = {name.replace("zero", "bf16_zero"): checkpoint(pickle=of_optimizers[2]) for name in names[1::2]}
            read_folder(MemoryFolder({"mp_rank_00_model_states.pt": one, **others}), ("fp32",), LayoutPool())

    return simple(seeds, PICKLE, run)


def _of_model(shape: Sequence[int]) -> bytes:
    """Return the pickle of the model states of a rank."""
    size = call(glob("torch", "Size"), numbers(shape))
    empty = tensor(storage(elements=4), shape=(0,))
    return stop(
        mapping(
            module=mapping(w=empty, n=tensor(shape=(), strides=())),
            param_shapes=b"](" + mapping(w=size) + b"e",
            buffer_names=b"](" + text("n") + b"e",
            frozen_param_shapes=mapping(f=size),
            frozen_param_fragments=mapping(f=tensor(shape=(2,))),
            shared_params=mapping(t=text("w")),
            global_steps=num(7),
        )
    )


def _of_optimizer(*, count: bytes = b"N", zero: int = 3) -> bytes:
    """Return the pickle of the optimizer states of a rank."""
    flat = b"](" + tensor(shape=(2,)) + b"e"
    stage = call(glob("deepspeed.runtime.zero.config", "ZeroStageEnum"), num(zero))
    adam = mapping(
        state=mapping(a=mapping(step=tensor(shape=(), strides=()))), param_groups=b"](" + mapping(step=num(3)) + b"e"
    )
    groups = {"fp32_flat_groups": flat, "single_partition_of_fp32_groups": flat}
    padding = b"](](" + num(0) + b"ee"
    states = mapping(
        zero_stage=stage, partition_count=count, optimizer_state_dict=adam, param_alignment_paddings=padding, **groups
    )
    return stop(mapping(optimizer_state_dict=states))


def _layouts() -> Parser:
    """The names in a folder, a line each, around good files."""
    words = [f"{name}\n".encode() for name in _NAMES]
    seeds = [b"".join(words[start : start + 3]) for start in range(0, len(words), 2)]

    def run(data: bytes) -> None:
        names = [
            name
            for name in data.decode("utf-8", "surrogateescape").split("\n")
            if name.strip("/.") and "//" not in name
        ]
        _read({name: _content(name) for name in names})

    return simple(seeds, lines(words), run)


_NAMES = (
    *("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "config.json"),
    *("model.safetensors.index.json", *_SHARDS, "model-00001-of-00001.safetensors", "trainer_state.json"),
    *("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt", "layer_00-model_00-model_states.pt"),
    *("mp_rank_00/model_optim_rng.pt", "mp_rank_01/model_optim_rng.pt", "mp_rank_00/model_rng.pt", "zero_to_fp32.py"),
    *(".metadata", "__0_0.distcp", "__1_0.distcp", "__0.metadata", *_RANKS, "pytorch_model_fsdp_0/.metadata"),
    *("pytorch_model_fsdp_0/__0_0.distcp", "model_index.json", "unet/diffusion_pytorch_model.safetensors"),
    *("rank_0.pt", "rank_1.pt", "s_1_rank_0.pt", "optimizer.pt", "rng_state.pth", "training_args.bin"),
    *("model_1.safetensors", "ckpt_1.pt", "ckpt_2.pt"),
    *("zero_pp_rank_0_mp_rank_00_optim_states.pt", "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"),
    *("layer_0_expert_0_mp_rank_00_model_states.pt", "zero/w/fp32.pt", "zero_pp_rank_9_mp_rank_01_model_states.pt"),
    *("global_step5/mp_rank_00_model_states.pt", "x/y/z/model.safetensors", "\x1b[31m.safetensors", "::error::.pt"),
)


@cache
def _content(name: str) -> bytes:
    """Return the contents of a file with that name."""
    if name.endswith(".safetensors"):
        return _SHARDS.get(name, one())
    if name.endswith("index.json"):
        return json.dumps({"weight_map": _MAP}).encode()
    if name.endswith(".json"):
        return b'{"global_step": 5, "unet": ["diffusers", "UNet"]}'
    if name.endswith(".metadata"):
        return dcp_metadata()
    return PIECE if name.endswith(".distcp") else checkpoint(pickle=stop(mapping(module=mapping(w=tensor()))))
