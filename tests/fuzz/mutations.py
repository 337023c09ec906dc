"""Seeded damage: the bytes of a real file, and what is left of them after an accident or an attack."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

#: What begins like these is another format, whatever the file is called.
FOREIGN = {
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x75\x30\0\0\x75\x30\x08\x02\0\0\0",
    "zip": b"PK\x03\x04" + bytes(60),
    "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n",
    "gzip": b"\x1f\x8b\x08" + bytes(40),
    "pickle": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    "parquet": b"PAR1" + bytes(30) + b"PAR1",
    "json": b'{"a": [1, 2, {"b": null}]}',
    "utf16": "name,label\r\n".encode("utf-16"),
    "tar": bytes(10240),
    "wav": b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0",
    "playlist": b"#EXTM3U\n#EXTINF:9,\nhttp://localhost:9/a.ts\n",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n",
}
#: Lengths and counts that no honest header holds.
EXTREMES = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
#: What may stand in the place of a value in JSON, YAML or CSV.
VALUES = [None, True, -1, 0, 2**70, 1e308, "", "x", "../../x", "a\nb", [], {}, [[]], {"a": 1}, [None, "x"]]


WORDS = [
    b'"',
    b"\0",
    b",,",
    b"'",
    b": ",
    b"&a *a",
    b"!!python/object/apply:os.system [true]",
    b"9" * 5000,
    b"\xff\xfe",
    b"\r",
    b"[" * 2000,
    b"${run.folder}",
    b"${a",
    b"../../x",
    b"- ",
    b"\t",
]


def truncated(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content) or 1)]


def flipped(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice([1, 1, 3, 30])):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def zeroed(content: bytes, random: Random) -> bytes:
    start, size = _span(content, random)
    return content[:start] + bytes(size) + content[start + size :]


def noisy(content: bytes, random: Random) -> bytes:
    start, size = _span(content, random)
    return content[:start] + random.randbytes(size) + content[start + size :]


def cut_out(content: bytes, random: Random) -> bytes:
    start, size = _span(content, random)
    return content[:start] + content[start + size :]


def doubled(content: bytes, random: Random) -> bytes:
    start, size = _span(content, random)
    return content[: start + size] + content[start:]


def empty(content: bytes, random: Random) -> bytes:
    return b""


def foreign(content: bytes, random: Random) -> bytes:
    start = FOREIGN[random.choice(sorted(FOREIGN))]
    return start + random.choice([b"", content, content[len(start) :]])


def lying(content: bytes, random: Random) -> bytes:
    """A number of 4 or 8 bytes near the start, the end or anywhere becomes an extreme one."""
    width = random.choice([4, 8])
    near = random.choice([64, 512, len(content)])
    place = random.randrange(max(1, min(near, len(content)) - width))
    if random.random() < 0.3:
        place = max(0, len(content) - width - place)
    number = random.choice(EXTREMES) % 2 ** (8 * width)
    written = number.to_bytes(width, random.choice(["little", "big"]))
    return content[:place] + written + content[place + width :]


def _span(content: bytes, random: Random) -> tuple[int, int]:
    start = random.randrange(len(content) or 1)
    return start, min(len(content) - start, random.choice([1, 16, 512, 4096]))


BINARY: dict[str, Callable[[bytes, Random], bytes]] = {
    one.__name__: one for one in (truncated, flipped, zeroed, noisy, cut_out, doubled, empty, foreign, lying)
}


def other_value(content: bytes, random: Random) -> bytes:
    """JSON whose one node holds something else, or is not there."""
    tree = json.loads(content)
    places = list(_places(tree))
    if not places:
        return b"[]"
    parent, key = random.choice(places)
    if random.random() < 0.2:
        del parent[key]
    else:
        parent[key] = random.choice(VALUES)
    return json.dumps(random.choice([tree, tree, tree, random.choice(VALUES)])).encode()


def _places(tree):
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in list(keys):
        yield tree, key
        yield from _places(tree[key])


def other_line(content: bytes, random: Random) -> bytes:
    """Text of which one line is gone, doubled, moved, or has another word in it."""
    lines = content.split(b"\n")
    row = random.randrange(len(lines))
    line = lines[row]
    action = random.randrange(5)
    if action == 0:
        del lines[row]
    elif action == 1:
        lines.insert(row, line)
    elif action == 2:
        lines.insert(random.randrange(len(lines)), lines.pop(row))
    else:
        word = random.choice([json.dumps(random.choice(VALUES)).encode(), *WORDS])
        start = random.randrange(len(line) + 1)
        lines[row] = line[:start] + word + line[start + random.choice([0, 3]) :]
    return b"\n".join(lines)


#: By suffix: what is tried besides what can befall any file.
OWN = {".json": [other_value] * 9, ".csv": [other_line] * 5, ".yaml": [other_line] * 9}


def mutate(content: bytes, suffix: str, seed: str) -> tuple[str, bytes]:
    """The kind of damage and the damaged bytes; equal seeds give equal damage."""
    random = Random(seed)
    chosen = random.choice([*BINARY.values(), *OWN.get(suffix, [])])
    return chosen.__name__, chosen(content, random)
