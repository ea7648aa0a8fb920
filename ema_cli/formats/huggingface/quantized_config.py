"""Whether the configuration beside the weights of a folder says that they are quantized.

``config.json`` has a ``quantization_config``, at the top or in the part of one model of several; older quantizers wrote
a file of their own. Sources: ``transformers/quantizers``, AutoGPTQ, AutoAWQ, TensorRT Model Optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping

from ema_cli.errors import InputRefused, NothingMatched
from ema_cli.formats.folder import Folder
from ema_cli.formats.json_text import JsonError, parse_object
from ema_cli.storage.locations import open_source
from ema_cli.text import quoted

_CONFIG = "config.json"
_KEY = "quantization_config"
_OF_QUANTIZERS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_MOST_BYTES = 1 << 24


def quantization_in(folder: Folder) -> str:
    """Return how a folder says that its weights are quantized, in words that go on after its name; empty if not.

    A configuration that cannot be used says nothing: the weights are what they are without it.

    Raises:
        InputChanged: it is cut while it is read, or the system cannot read it.

    """
    own = next((name for name in _OF_QUANTIZERS if name in folder.files), None)
    if own is not None:
        return f"has {quoted(own)}"
    if _CONFIG not in folder.files:
        return ""
    config = _read(folder)
    for part in (config, *config.values()):
        found = part.get(_KEY) if isinstance(part, dict) else None
        if isinstance(found, dict):
            return f"has a {_KEY} in {quoted(_CONFIG)}{_method(found)}"
    return ""


def _method(found: Mapping[str, object]) -> str:
    method = found.get("quant_method")
    return f" (method {quoted(method)})" if isinstance(method, str) else ""


def _read(folder: Folder) -> dict[str, object]:
    try:
        with open_source(folder.location / _CONFIG) as source:
            raw = source.read(0, source.size()) if source.size() <= _MOST_BYTES else b"{}"
        return parse_object(raw, nan=True)
    except (InputRefused, NothingMatched, JsonError):
        return {}
