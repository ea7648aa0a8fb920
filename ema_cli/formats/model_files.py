"""Which files of a checkpoint folder belong to the model: what an averaged copy needs to be loaded as the original."""

from __future__ import annotations

import re
from collections.abc import Iterable

_COMPANION = re.compile(
    r"(?:config|generation_config|adapter_config|model_config|preprocessor_config|processor_config"
    r"|image_processor_config|video_preprocessor_config|feature_extractor_config|scheduler_config"
    r"|special_tokens_map|added_tokens|vocab|tokenizer(?:_\w+)?|chat_template|modules|sentence_bert_config"
    r"|config_sentence_transformers|target_vocab|source_vocab|normalizer|phoneme_\w+)\.json"
    r"|tokenizer\.model(?:\.v\d+)?|spiece\.model|sentencepiece[\w.]*\.model|source\.spm|target\.spm|bpe\.codes"
    r"|vocab\.txt|merges\.txt|dict\.txt|entity_vocab\.json|tekken\.json|chat_template\.\w+|[A-Za-z]\w*\.py"
)
"""Configuration, tokenizer, preprocessing, and the model's own code, which is copied as text and never run."""
_TOOLS = ("zero_to_fp32.py",)
"""Scripts that convert the checkpoint that they lie in."""


def find_companions(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the files that belong to the model, in order. A README tells of the original: it does not."""
    return tuple(sorted(name for name in names if _COMPANION.fullmatch(name) and name not in _TOOLS))
