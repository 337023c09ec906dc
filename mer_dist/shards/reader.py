"""Random access to clips through the index: any order, every clip exactly once.

Plain webdataset streams entire tars and cannot give every clip exactly once over several ranks. A seeded
permutation of the index rows can, through their offsets.
"""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np

from mer_dist.core.errors import UserError
from mer_dist.shards import shard_index, views
from mer_dist.shards.encode import Encoded
from mer_dist.shards.shard_index import Index, Row
from mer_dist.storage.run_folder import ShardFolder

#: Open tars per reader; systems commonly allow 1024 files a process.
OPEN_TARS = 128
#: modality -> suffix ending of its members; None: all members.
PARTS = {None: "", "video": ".jpg", "audio": "flac", "text": "json"}


@dataclass(kw_only=True)
class Sample:
    """One stored clip."""

    name: str
    label: str | None
    split: str
    transcript: str | None
    #: Modalities that the clip lacks; their fields below are empty and hold no data.
    missing: list[str]
    duration: float
    jpegs: list[bytes]
    flac: bytes | None
    #: Tar and clip, for errors.
    location: str = ""

    def images(self, count: int = 0) -> np.ndarray:
        """(T, H, W, 3) uint8 RGB in time order; ``count`` > 0: that many, evenly spaced.

        Raises:
            UserError: one cannot be decoded; names shard and clip.
        """
        import cv2

        chosen = self.jpegs
        if 0 < count < len(chosen):
            chosen = [chosen[int((row + 0.5) * len(chosen) / count)] for row in range(count)]
        if not chosen:
            return np.zeros((0, 0, 0, 3), np.uint8)
        with suppress(cv2.error, ValueError):
            images = [cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) for content in chosen]
            found = [image[..., ::-1] for image in images if image is not None]
            if len(found) == len(chosen):
                return np.stack(found)
        raise self._damaged("pictures")

    def waveform(self) -> np.ndarray:
        """(S,) float32 in [-1, 1], 16 kHz mono; empty if the audio is missing.

        Raises:
            UserError: it cannot be decoded; names shard and clip.
        """
        import soundfile

        if self.flac is None:
            return np.zeros(0, np.float32)
        try:
            wave = soundfile.read(io.BytesIO(self.flac), dtype="float32")[0]
        except (soundfile.SoundFileError, MemoryError):
            raise self._damaged("sound") from None
        if wave.ndim != 1:
            raise self._damaged("sound")
        return wave

    @classmethod
    def of(cls, row: Row, members: dict[str, bytes], location: str) -> Sample:
        """A clip by its row and by those of its members that were read."""
        return cls(
            name=row.name,
            label=row.label,
            split=row.split,
            transcript=row.transcript,
            missing=row.missing,
            duration=row.duration,
            jpegs=[
                content
                for suffix, content in views.of_view(members, row.view or views.FACE).items()
                if suffix.endswith(PARTS["video"])
            ],
            flac=members.get("flac"),
            location=location,
        )

    def _damaged(self, what: str) -> UserError:
        return UserError(
            f"{self.location}: its {what} cannot be decoded, so the tar is damaged; delete it and run shard"
        )


class MemoryReader:
    """Reads clips that are in no tar, as :class:`Reader` does those of a shards folder."""

    def __init__(self, encoded: Iterable[Encoded]):
        """
        Args:
            encoded: clips of which something can be used.
        """
        clips = list(encoded)
        #: All clips.
        self.rows = [
            Row.of(one, 0, {suffix: (0, len(content)) for suffix, content in one.members.items()})
            for one in clips
        ]
        self._members = {one.clip.name: one.members for one in clips}

    def read(self, row: Row, modality: str | None = None) -> Sample:
        members = {suffix: self._members[row.name][suffix] for suffix in row.members}
        return Sample.of(row, members, f"clip {row.name}")


class Reader:
    """Reads clips of a shards folder by index row.

    Reads use explicit offsets, so a forked process may share the open files; a pickled reader opens
    its own.
    """

    def __init__(self, shards_folder: Path):
        self.folder = Path(shards_folder)
        self._tars: OrderedDict[int, int] = OrderedDict()
        self._opening = Lock()

    @cached_property
    def rows(self) -> Index:
        """All clips.

        Raises:
            UserError: the index is missing or damaged.
        """
        return shard_index.read(self.folder)

    def read(self, row: Row, modality: str | None = None) -> Sample:
        """The clip of one row, or only the members of a modality; its checksum is not verified.

        Raises:
            UserError: the tar is missing or too short; names shard and clip.
        """
        return Sample.of(row, self.members(row, PARTS[modality]), self._location(row))

    def members(self, row: Row, ending: str = "") -> dict[str, bytes]:
        """Suffix -> content of the clip's members with this suffix ending, in tar order, by one read: they
        are adjacent."""
        wanted = {suffix: span for suffix, span in row.members.items() if suffix.endswith(ending)}
        if not wanted:
            return {}
        start = min(offset for offset, _ in wanted.values())
        end = max(offset + size for offset, size in wanted.values())
        try:
            tar = self._tar(row.shard)
            # pread allocates the requested size before it knows that the bytes exist.
            there = 0 <= start <= end <= os.fstat(tar).st_size
            content = os.pread(tar, end - start, start) if there else b""
        except OSError as error:
            raise UserError(f"{self._location(row)}: cannot be read ({error.strerror}); run shard") from None
        if not there or len(content) < end - start:
            raise UserError(f"{self._location(row)}: the tar ends too early; delete it and run shard")
        return {
            suffix: content[offset - start : offset - start + size]
            for suffix, (offset, size) in wanted.items()
        }

    def _location(self, row: Row) -> str:
        return f"{ShardFolder(self.folder).tar(row.shard)}, clip {row.name}"

    def close(self) -> None:
        while self._tars:
            os.close(self._tars.popitem()[1])

    def _tar(self, number: int) -> int:
        with self._opening:
            return self._opened(number)

    def _opened(self, number: int) -> int:
        if number not in self._tars:
            if len(self._tars) >= OPEN_TARS:
                os.close(self._tars.popitem(last=False)[1])
            self._tars[number] = os.open(ShardFolder(self.folder).tar(number), os.O_RDONLY)
        self._tars.move_to_end(number)
        return self._tars[number]

    def __getstate__(self) -> dict:
        return {"folder": self.folder}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _tars=OrderedDict(), _opening=Lock())

    def __del__(self):
        if hasattr(self, "_tars"):
            self.close()
