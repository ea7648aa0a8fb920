"""The files and folders that a side file names: without them, a library cannot load the folder that it is copied to.

``auto_map`` of a configuration names modules of the model's own code: ``modeling_x.Model`` is in ``modeling_x.py``,
``user/repo--modeling_x.Model`` is not in this folder. ``modules.json`` names a folder for each further module.
Sources: ``transformers.dynamic_module_utils``, ``SentenceTransformer.load`` in sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from json import loads

from ema_cli.storage.source import ByteSource

_MODULES = "modules.json"
_CONFIGURATION = "config.json"
"""The end of the names of configurations: ``config.json``, ``tokenizer_config.json``."""
_ELSEWHERE = "--"
"""Between the name of a repository and a module in it."""
_MOST_BYTES = 1 << 20


def names_missing(name: str, source: ByteSource, copied: Collection[str]) -> list[str]:
    """Return what a side file names that is not among the names that are ``copied`` with it.

    A file that is too large or not JSON names nothing.
    """
    if not (name == _MODULES or name.endswith(_CONFIGURATION)) or source.size() > _MOST_BYTES:
        return []
    try:
        document = loads(source.read(0, source.size()))
    except (ValueError, RecursionError):
        return []
    named = _folders(document) if name == _MODULES else _modules(document)
    return [other for other in dict.fromkeys(named) if other not in copied]


def _folders(document: object) -> Iterator[str]:
    """Yield the folders of the modules of sentence-transformers; the first module is usually in no folder."""
    for module in document if isinstance(document, list) else []:
        path = module.get("path") if isinstance(module, dict) else None
        if isinstance(path, str) and path.strip("./"):
            yield f"{path.strip('/')}/"


def _modules(document: object) -> Iterator[str]:
    """Yield the files of the classes in ``auto_map``: each value is a class, or a list of classes and ``None``."""
    auto_map = document.get("auto_map") if isinstance(document, dict) else None
    for value in auto_map.values() if isinstance(auto_map, dict) else []:
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and _ELSEWHERE not in one and "." in one:
                yield f"{one.rpartition('.')[0].replace('.', '/')}.py"
