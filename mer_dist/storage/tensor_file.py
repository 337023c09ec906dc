"""The header of a safetensors file: what each tensor is and where it lies, without reading one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Entry:
    #: As safetensors names it, such as ``F32``.
    dtype: str
    shape: list[int]
    #: First byte of the values, counted from the start of the file.
    start: int


def header(path: Path) -> dict[str, Entry]:
    """Name -> facts of every tensor.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not safetensors, or not complete.
    """
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        # The first bytes of another kind of file would be a length of petabytes.
        text = file.read(length) if length < size else b""
    try:
        content = json.loads(text)
        content.pop("__metadata__", None)
        entries = {
            name: Entry(
                dtype=entry["dtype"], shape=entry["shape"], start=8 + length + entry["data_offsets"][0]
            )
            for name, entry in content.items()
        }
        end = 8 + length + max((entry["data_offsets"][1] for entry in content.values()), default=0)
    except (ValueError, AttributeError, LookupError, TypeError):
        raise ValueError("no complete safetensors file") from None
    if size != end:
        raise ValueError(f"{size} bytes where its header promises {end}")
    return entries
