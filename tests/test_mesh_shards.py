"""Which rectangles of a distributed tensor a rank holds, against the way in which torch itself cuts tensors."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from ema_cli.errors import InputRefused
from ema_cli.formats.torch_ranks.mesh_shards import AxisPlacement, Sharding, rectangles_of

Placed = Shard | _StridedShard | Replicate


def by_torch(
    whole: torch.Tensor, mesh: tuple[int, ...], place: tuple[int, ...], placements: list[Placed]
) -> torch.Tensor:
    """Return the part of a rank as torch cuts it, one dimension of the mesh after the other."""
    for ranks, index, placement in zip(mesh, place, placements, strict=True):
        if not isinstance(placement, Replicate):
            whole = placement._split_tensor(whole, ranks, with_padding=False)[0][index]
    return whole


def as_record(placement: Placed) -> AxisPlacement:
    """Return a placement of torch as a record."""
    if isinstance(placement, Replicate):
        return AxisPlacement()
    return AxisPlacement(dim=placement.dim, split_factor=getattr(placement, "split_factor", 1))


def drawn(chance: random.Random) -> tuple[tuple[int, ...], tuple[int, ...], list[Placed]]:
    """Return a random shape, mesh, and placements."""
    shape = tuple(chance.choice((0, 1, 2, 3, 5, 8, 12, 13)) for _ in range(chance.randint(1, 3)))
    mesh = tuple(chance.randint(1, 4) for _ in range(chance.randint(1, 3)))
    kinds = (
        Shard,
        lambda _: Replicate(),
        lambda dim: _StridedShard(dim, split_factor=chance.randint(1, 4)),
    )
    return shape, mesh, [chance.choice(kinds)(chance.randrange(len(shape))) for _ in mesh]


@pytest.mark.parametrize("seed", range(300))
def test_every_rank_gets_what_torch_gives_it(seed: int) -> None:
    """Uneven sizes, empty parts, one dimension cut twice, strided placements of FSDP2 over tensor parallelism."""
    shape, mesh, placements = drawn(random.Random(seed))
    whole = torch.arange(int(torch.tensor(shape).prod())).reshape(shape)
    for place in itertools.product(*map(range, mesh)):
        expected = by_torch(whole, mesh, place, placements)
        found = rectangles_of(
            shape, Sharding(mesh=mesh, coordinate=place, placements=tuple(map(as_record, placements)))
        )
        assert found.local_shape == tuple(expected.shape)
        local = torch.full(found.local_shape, -1)
        for one in found.rectangles:
            here = tuple(slice(start, start + size) for start, size in zip(one.start, one.shape, strict=True))
            there = tuple(slice(start, start + size) for start, size in zip(one.origin, one.shape, strict=True))
            local[here] = whole[there]
        assert torch.equal(local, expected)


def test_fsdp_over_tensor_parallelism_is_one_rectangle() -> None:
    """The strided placement undoes the order of the cuts: rank (0, 1) of a mesh of 2 x 2 has rows 4 and 5 of 8."""
    placements = (AxisPlacement(dim=0, split_factor=2), AxisPlacement(dim=0))
    found = rectangles_of((8, 8), Sharding(mesh=(2, 2), coordinate=(0, 1), placements=placements))
    assert [(one.origin, one.shape) for one in found.rectangles] == [((4, 0), (2, 8))]


def test_a_stated_order_of_the_cuts_is_followed() -> None:
    """Newer versions of torch state the order in which the dimensions of the mesh cut the tensor."""
    two = (AxisPlacement(dim=0), AxisPlacement(dim=0))
    sharding = Sharding(mesh=(2, 2), coordinate=(0, 1), placements=two, order={0: (1, 0)})
    assert rectangles_of((8,), sharding).rectangles[0].origin == (4,)


@pytest.mark.parametrize(
    ("sharding", "words"),
    [
        (Sharding(mesh=(2,), coordinate=(2,), placements=(AxisPlacement(dim=0),)), "damaged placement"),
        (Sharding(mesh=(2, 2), coordinate=(0,), placements=(AxisPlacement(dim=0),)), "damaged placement"),
        (Sharding(mesh=(2,), coordinate=(0,), placements=(AxisPlacement(dim=1),)), "along a dimension"),
        (Sharding(mesh=(2,), coordinate=(0,), placements=(AxisPlacement(dim=0, split_factor=0),)), "damaged placement"),
        (
            Sharding(mesh=(2,), coordinate=(0,), placements=(AxisPlacement(dim=0, split_factor=10**9),)),
            "pieces on one rank",
        ),
        (Sharding(mesh=(2,), coordinate=(0,), placements=(AxisPlacement(dim=0),), order={0: (7,)}), "order of shards"),
        (Sharding(mesh=(1,) * 40, coordinate=(0,) * 40, placements=(AxisPlacement(dim=0),) * 40), "damaged placement"),
    ],
)
def test_placements_that_contradict_themselves_are_refused(sharding: Sharding, words: str) -> None:
    """Nothing is guessed, and no number makes the work long."""
    with pytest.raises(InputRefused, match=words):
        rectangles_of((8,), sharding)
