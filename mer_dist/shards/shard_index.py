"""The shard index, one row a clip, and beside each tar the record of its inputs.

``index.parquet`` holds the rows of all shards. ``{00000}.parquet`` beside a tar holds the rows of that
shard and, as metadata, :class:`ShardRecord`: it is written after the tar, so it proves that the tar is
complete. ``unstored.json`` lists the clips of the corpus that are in no tar, ``twins.json`` the clips
that are one recording under several names.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mer_dist.core.errors import UserError, reading
from mer_dist.core.records import LABELED, UNLABELED, Content, Modality, Problem
from mer_dist.shards import views
from mer_dist.shards.encode import Encoded
from mer_dist.storage import parquet
from mer_dist.storage.files import atomic, read_json, write_json
from mer_dist.storage.run_folder import ShardFolder

#: Remark on a clip whose video is masked.
FACELESS = "no face is known, and the video is masked, as shard.faceless says"
_RECORD = b"mer_dist.shard"
#: Rows that exist as objects at a time.
_AT_ONCE = 1024
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("shard", pa.int32()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("transcript", pa.string()),
        ("duration", pa.float64()),
        ("missing", pa.list_(pa.string())),
        ("frames", pa.int32()),
        ("samples", pa.int64()),
        ("checksum", pa.string()),
        ("suffixes", pa.list_(pa.string())),
        ("offsets", pa.list_(pa.int64())),
        ("sizes", pa.list_(pa.int64())),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One clip of the shards."""

    name: str
    shard: int
    split: str
    #: None for an unlabelled clip.
    label: str | None
    #: None if the text is missing.
    transcript: str | None
    #: Seconds: the maximum of video and audio.
    duration: float
    #: Modalities (audio, video, text) that the clip lacks, sorted.
    missing: list[str]
    #: Stored frames.
    frames: int
    #: 16 kHz audio samples.
    samples: int
    #: Checksum of the clip's members; see :func:`checksum`.
    checksum: str
    #: Member suffix ("00.jpg", "flac", "json") -> offset and size in the tar, in tar order.
    members: dict[str, tuple[int, int]]
    #: What frames and members are of: all views, as stored, or one.
    view: str = ""

    def of_view(self, view: str) -> Row:
        """The clip as if no other view were stored."""
        members = views.of_view(self.members, view)
        frames = views.pictures(members)
        missing = {*self.missing} | ({Modality.VIDEO.value} if not frames else set())
        return replace(self, view=view, members=members, frames=frames, missing=sorted(missing))

    @classmethod
    def of(cls, encoded: Encoded, shard: int, members: dict[str, tuple[int, int]]) -> Row:
        """Of a clip whose members are at these offsets, with these sizes, in the tar of ``shard``."""
        clip = encoded.clip
        return cls(
            name=clip.name,
            shard=shard,
            split=clip.split,
            label=clip.label,
            transcript=clip.transcript,
            duration=encoded.duration,
            missing=encoded.missing,
            frames=encoded.frames,
            samples=encoded.samples,
            checksum=checksum(encoded.members.items()),
            members=members,
        )


@dataclass(kw_only=True)
class ShardRecord:
    """The inputs of a shard."""

    #: SHA-256 and size of the tar; both empty where no clip of the shard could be stored.
    sha256: str
    bytes: int
    #: Fingerprint of the settings.
    fingerprint: str
    #: Every clip that was tried, stored or not -> fingerprint of its sources.
    clips: dict[str, str]
    problems: list[Problem]
    #: Clips with video in which no face is known.
    faceless: int
    #: Notable fact, though nothing was lost -> names of the clips.
    remarks: dict[str, list[str]] = field(default_factory=dict)
    #: Stored clip -> what its media are; empty in shards of earlier versions.
    content: dict[str, Content] = field(default_factory=dict)


def checksum(members: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 over suffix, size and bytes of a clip's members, in tar order."""
    digest = hashlib.sha256()
    for suffix, content in members:
        digest.update(f"{suffix}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


class Index(Sequence[Row]):
    """Clips by shard and position in it, as columns; a :class:`Row` is made whenever it is asked for, since a million
    objects do not fit in memory beside the features."""

    def __init__(self, table: pa.Table):
        """
        Raises:
            ValueError: fields are empty that no clip may lack.
        """
        empty = [name for name in SCHEMA.names if table[name].null_count]
        if set(empty) - {"label", "transcript"}:
            raise ValueError(f"fields of {', '.join(empty)} are empty")
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, key: int) -> Row: ...
    @overload
    def __getitem__(self, key: slice) -> list[Row]: ...
    def __getitem__(self, key):
        if isinstance(key, slice):
            return [self[number] for number in range(*key.indices(len(self)))]
        number = range(len(self))[key]
        return _rows(self.table.slice(number, 1))[0]

    def __iter__(self) -> Iterator[Row]:
        for batch in self.table.to_batches(max_chunksize=_AT_ONCE):
            yield from _rows(batch)

    def column(self, name: str) -> list:
        """A field of all clips."""
        return self.table[name].to_pylist()

    @property
    def names(self) -> list[str]:
        return self.column("name")

    def where(self, keep: Iterable[bool]) -> Index:
        """The clips for which ``keep`` is true."""
        return Index(self.table.filter(pa.array(keep, pa.bool_())))

    def by_shard(self) -> dict[int, Index]:
        """shard -> its clips."""
        shards = np.asarray(self.table["shard"])
        table = self.table
        if (np.diff(shards) < 0).any():
            order = np.argsort(shards, kind="stable")
            table, shards = table.take(order), shards[order]
        numbers, starts = np.unique(shards, return_index=True)
        sizes = np.diff(starts, append=len(shards))
        return {
            int(number): Index(table.slice(start, size))
            for number, start, size in zip(numbers, starts, sizes, strict=True)
        }


def read(shards_folder: Path) -> Index:
    """All clips.

    Raises:
        UserError: the index is missing or damaged.
    """
    path = ShardFolder(shards_folder).index
    if not path.exists():
        raise UserError(f"{path}: no such file; run shard first")
    return _read(path)


def read_labels(path: Path) -> dict[str, tuple[str, str | None]]:
    """name -> split and label, which are in no tar, from an index or the file beside a tar.

    Raises:
        UserError: it is not readable.
    """
    with reading(path, "delete it and run shard"):
        names, *found = parquet.read(path, ["name", "split", "label"]).to_pydict().values()
        return dict(zip(names, zip(*found, strict=True), strict=True))


def read_rows(path: Path) -> list[Row]:
    """The rows of the file beside a tar.

    Raises:
        UserError: it is not readable.
    """
    return list(_read(path))


def join(shards_folder: Path, numbers: Iterable[int]) -> Index:
    """The clips of these shards, from the files beside their tars.

    Raises:
        UserError: one is not readable.
    """
    parts = [_read(ShardFolder(shards_folder).record(number)).table for number in numbers]
    return Index(pa.concat_tables(parts) if parts else SCHEMA.empty_table())


def _read(path: Path) -> Index:
    with reading(path, "delete it and run shard"):
        return Index(parquet.read(path, schema=SCHEMA))


def _rows(table: pa.Table | pa.RecordBatch) -> list[Row]:
    columns = {name: table[name].to_pylist() for name in SCHEMA.names}
    spans = zip(columns.pop("suffixes"), columns.pop("offsets"), columns.pop("sizes"), strict=True)
    columns["members"] = [
        dict(zip(suffixes, zip(offsets, sizes, strict=True), strict=True))
        for suffixes, offsets, sizes in spans
    ]
    names = list(columns)
    return [Row(**dict(zip(names, values, strict=True))) for values in zip(*columns.values(), strict=True)]


def labels(labeled: list[Row]) -> dict[str, str]:
    """name -> label of labelled clips, in their order.

    Raises:
        UserError: one has no label.
    """
    without = [row.name for row in labeled if row.label is None]
    if without:
        raise UserError(
            f"index.parquet: clip {without[0]} is {LABELED} and has no label; delete it and run shard"
        )
    return {row.name: row.label for row in labeled if row.label is not None}


def write(shards_folder: Path, index: Index) -> None:
    _write(ShardFolder(shards_folder).index, index.table)


def write_rows(path: Path, rows: list[Row], record: ShardRecord | None = None) -> None:
    columns = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names[:-3]}
    columns["suffixes"] = [list(row.members) for row in rows]
    columns["offsets"] = [[offset for offset, _ in row.members.values()] for row in rows]
    columns["sizes"] = [[size for _, size in row.members.values()] for row in rows]
    table = pa.Table.from_pydict(columns, SCHEMA)
    if record is not None:
        content = asdict(record) | {"problems": [problem.as_values() for problem in record.problems]}
        text = json.dumps(content, ensure_ascii=False, sort_keys=True)
        table = table.replace_schema_metadata({_RECORD: text.encode()})
    _write(path, table)


def _write(path: Path, table: pa.Table) -> None:
    with atomic(path) as temporary:
        # Labels are stored nowhere else: a corrupted byte must not change one into another.
        pq.write_table(table, temporary, write_page_checksum=True)


def write_unstored(shards_folder: Path, splits: dict[str, str]) -> None:
    """Record the clips of the corpus that could not be stored: name -> split."""
    write_json(ShardFolder(shards_folder).unstored, splits)


def unstored(shards_folder: Path) -> dict[str, str] | None:
    """name -> split of the clips of the corpus that are in no tar; None if the shards come from an earlier
    version, which did not record them.

    Raises:
        UserError: the file is not readable.
    """
    path = ShardFolder(shards_folder).unstored
    if not path.exists():
        return None
    with reading(path, "delete it and run shard"):
        splits = read_json(path)
        if not isinstance(splits, dict) or {*splits.values()} - {LABELED, UNLABELED}:
            raise ValueError("a clip has neither of the splits labeled and unlabeled")
        return splits


def write_asked(shards_folder: Path, names: list[str] | None) -> None:
    """Record the unlabelled clips that the corpus wants answers for; None: all of them."""
    path = ShardFolder(shards_folder).asked
    if names is None:
        path.unlink(missing_ok=True)
    else:
        write_json(path, names)


def asked(shards_folder: Path) -> list[str] | None:
    """The unlabelled clips that the corpus wants answers for; None: all of them.

    Raises:
        UserError: the file is not readable.
    """
    path = ShardFolder(shards_folder).asked
    if not path.exists():
        return None
    with reading(path, "delete it and run shard"):
        names = read_json(path)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("it does not list clips")
        return names


def write_annotations(shards_folder: Path, of_clips: dict[str, dict[str, str]]) -> None:
    """Keep what the corpus says of clips beside their labels: name -> column -> text. Nothing uses it yet."""
    path = ShardFolder(shards_folder).annotations
    columns = [*dict.fromkeys(column for own in of_clips.values() for column in own)]
    if not columns:
        path.unlink(missing_ok=True)
        return
    said = {name: own for name, own in of_clips.items() if own}
    arrays = [pa.array(said, pa.string())]
    arrays += [pa.array([own.get(column) for own in said.values()], pa.string()) for column in columns]
    _write(path, pa.Table.from_arrays(arrays, ["name", *columns]))


def annotations_of(shards_folder: Path, name: str) -> dict[str, str]:
    """Column -> text, of a clip.

    Raises:
        UserError: the file is not readable.
    """
    path = ShardFolder(shards_folder).annotations
    if not path.exists():
        return {}
    with reading(path, "delete it and run shard"):
        table = parquet.read(path)
        names = table["name"].to_pylist()
        if name not in names:
            return {}
        own = table.slice(names.index(name), 1).to_pylist()[0]
        return {column: str(text) for column, text in own.items() if column != "name" and text is not None}


def write_twins(shards_folder: Path, groups: list[list[str]]) -> None:
    """Record the clips that are one recording: their names, group by group."""
    write_json(ShardFolder(shards_folder).twins, groups)


def twins(shards_folder: Path) -> list[list[str]]:
    """Names of clips that are one recording; empty if an earlier version made the shards.

    Raises:
        UserError: the file is not readable.
    """
    path = ShardFolder(shards_folder).twins
    if not path.exists():
        return []
    with reading(path, "delete it and run shard"):
        groups = read_json(path)
        if not all(
            isinstance(names, list) and all(isinstance(name, str) for name in names) for names in groups
        ):
            raise ValueError("it does not name clips")
        return groups


def read_record(path: Path) -> ShardRecord | None:
    """The record alone, which costs only a small read; None if it is damaged."""
    try:
        record = json.loads(pq.read_metadata(path).metadata[_RECORD])
        record["problems"] = [Problem(**problem) for problem in record["problems"]]
        record["content"] = {name: Content(**own) for name, own in record.get("content", {}).items()}
        return ShardRecord(**record)
    except Exception as error:
        if getattr(error, "errno", None) in (errno.EIO, errno.ESTALE):
            raise  # A brief disk failure is no reason to rebuild the tar.
        return None  # On damaged content the parser may raise anything; the tar is rebuilt.


def numbers(shards_folder: Path) -> list[int]:
    """Numbers of the shards that have a record, readable or not."""
    return [int(path.stem) for path in ShardFolder(shards_folder).all_records()]


def all_records(shards_folder: Path) -> dict[int, ShardRecord | None]:
    """number -> record of every shard that has one; None where it is not readable."""
    return {
        number: read_record(ShardFolder(shards_folder).record(number)) for number in numbers(shards_folder)
    }


def record_of(shards_folder: Path, number: int) -> ShardRecord:
    """The record of a shard's inputs.

    Raises:
        UserError: the shard does not exist.
    """
    path = ShardFolder(shards_folder).record(number)
    record = read_record(path)
    if record is None:
        raise UserError(f"{path}: no such shard; run shard")
    return record


def shard_fingerprint(shards_folder: Path, number: int) -> str:
    """SHA-256 of the shard's tar: it changes exactly when the content does.

    Raises:
        UserError: the shard does not exist.
    """
    return record_of(shards_folder, number).sha256
