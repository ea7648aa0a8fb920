"""How the files of ``torch.save`` begin; apart from the readers, which other files do not need."""

from __future__ import annotations

LOCAL_SIGNATURE = b"PK\x03\x04"


def looks_like_zip(head: bytes) -> bool:
    """Whether a file begins like a zip archive."""
    return head.startswith(LOCAL_SIGNATURE)


def looks_like_pickle(head: bytes) -> bool:
    """Whether a file begins like a pickle of protocol 2 or newer."""
    return len(head) > 1 and head[0] == 0x80 and head[1] <= 5  # noqa: PLR2004 - PROTO and its version
