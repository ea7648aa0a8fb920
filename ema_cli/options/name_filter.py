"""The tensors that ``--include`` and ``--exclude`` select, by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable


def name_filter(include: Iterable[str], exclude: Iterable[str]) -> Callable[[str], bool]:
    """Return a function of a name: whether ``include`` finds it, or is empty, and ``exclude`` does not."""
    included = [re.compile(pattern) for pattern in include]
    excluded = [re.compile(pattern) for pattern in exclude]

    def is_wanted(name: str) -> bool:
        if included and not any(pattern.search(name) for pattern in included):
            return False
        return not any(pattern.search(name) for pattern in excluded)

    return is_wanted
