"""Checkpoints taken apart and put together again under a right checksum."""

from __future__ import annotations

import json
from typing import Any

from xxhash import xxh3_128

BLANK = "0" * 32


def split(raw: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The header, the document in it, and the tensors."""
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["steprule"]), raw[8 + length :]


def sealed(header: Any, data: bytes, more: str = "") -> bytes:
    """A file with this header, whatever it says, and with the checksum that goes with it.

    Args:
        header: the header.
        data: the tensors.
        more: text that the header has before its closing brace.
    """
    if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
        rest = {key: value for key, value in header["__metadata__"].items() if key != "checksum"}
        header = {**header, "__metadata__": {"checksum": f"xxh3-128:{BLANK}", **rest}}
    text = json.dumps(header, separators=(",", ":"))
    encoded = (f"{text[:-1]},{more}}}" if more else text).encode()
    raw = len(encoded).to_bytes(8, "little") + encoded + data
    return raw.replace(BLANK.encode(), xxh3_128(raw).hexdigest().encode(), 1)
