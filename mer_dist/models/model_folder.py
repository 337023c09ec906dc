"""Check that a model folder is complete and of the expected family, before any weight is read.

Only json files, headers and sizes are read, so a folder of 26 GB is checked in a moment. Code in a
folder (``auto_map``, pickles) is never run.
"""

from __future__ import annotations

import hashlib
import json
import pickletools
import re
import zipfile
from pathlib import Path

from mer_dist.core.errors import UserError
from mer_dist.models.family import FAMILIES, family_of
from mer_dist.storage import tensor_file

#: In the order in which transformers looks for them.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
#: All that a pickle of tensors may import.
_TENSOR_PARTS = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_(tensor(_v[23])?|parameter)"
    r"|torch(\.storage)?\.\w*Storage|torch\.nn\.parameter\.Parameter|torch\.(Size|b?float\w*|u?int\d+|bool)"
)
#: Bytes at both ends of a file that are compared: weights of 26 GB would take minutes.
_ENDS = 1 << 20
_COPY_AGAIN = "copy or download it again"


def check(folder: Path, family: str) -> None:
    """Inspect a model folder in the Hugging Face layout.

    Raises:
        UserError: one line with the file that is missing, truncated, unsafe or of another model.
    """
    folder = Path(folder)
    check_config(folder, family)
    for path in weight_files(folder):
        _check_weights(path)
    own = family_of(family, folder)
    either = [name for name in own.one_of_files if (folder / name).is_file()]
    if own.one_of_files and not either:
        raise UserError(
            f"{folder}: there is neither {' nor '.join(own.one_of_files)}; is the model folder complete?"
        )
    for name in (*own.files, *either):
        _check_beside(folder / name)


def check_config(folder: Path, family: str) -> None:
    """Inspect ``config.json`` alone; the weights may be missing.

    Raises:
        UserError: it is missing, unreadable, or of another model.
    """
    if not folder.is_dir():
        raise UserError(_no_folder(folder))
    settings = read_settings(folder, "config.json")
    model_types = FAMILIES[family].model_types
    found = settings.get("model_type")
    if found not in model_types:
        raise UserError(
            f"{folder / 'config.json'}: model_type is {found!r}; the family {family} needs "
            f"{' or '.join(map(repr, model_types))}"
        )
    if reason := family_of(family, folder).refuse_settings(settings):
        raise UserError(f"{folder / 'config.json'}: {reason}")
    if settings.get("quantization_config"):
        raise UserError(
            f"{folder / 'config.json'}: the weights are already quantised; give the "
            "published ones and set extractors.*.quantize"
        )


def read_settings(folder: Path, name: str) -> dict:
    """A json object of a model folder.

    Raises:
        UserError: it is missing or unreadable.
    """
    path = Path(folder) / name
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; is the model folder complete?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_COPY_AGAIN}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}: holds no json object; {_COPY_AGAIN}")
    return settings


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would read the weights from.

    Raises:
        UserError: there are none, or a shard in an index is missing.
    """
    name = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if name is None:
        raise UserError(f"{folder}: there are no weights ({' or '.join(WEIGHTS[::2])}, or their index)")
    if not name.endswith(".index.json"):
        return [folder / name]
    weight_map = read_settings(folder, name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / name}: has no weight_map; {_COPY_AGAIN}")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise UserError(f"{folder / name}: names {shard}, which is not there; download it as well")
    return [folder / shard for shard in shards]


def identity(folder: Path, family: str) -> dict[str, list]:
    """What a model is known by: size, and SHA-256 of both ends, of each file that is read.

    Raises:
        UserError: there are no weights.
    """
    own, folder = family_of(family, folder), Path(folder)
    extra = own.extractor_class().extra_files
    beside = [folder / name for name in ("config.json", *own.files, *extra)]
    paths = [*weight_files(folder), *(path for path in beside if path.is_file())]
    return {path.name: [path.stat().st_size, _ends(path)] for path in sorted(set(paths))}


def check_identity(folder: Path, family: str, expected: dict[str, list], what: str, remedy: str) -> None:
    """
    Args:
        expected: of :func:`identity`.
        what, remedy: for the message: which model it is, and how another one is named.

    Raises:
        UserError: the model is not there, or is another.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{what} is not in {folder}; {remedy}")
    found = identity(folder, family)
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise UserError(f"{what}: {folder} has no {name}; {remedy}")
        if found[name] != expected.get(name):
            raise UserError(
                f"{what}: {Path(folder) / name} is another file than that of the training; {remedy}"
            )


def _ends(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(_ENDS))
        file.seek(max(path.stat().st_size - _ENDS, 0))
        digest.update(file.read(_ENDS))
    return digest.hexdigest()


def safetensors_header(path: Path) -> dict[str, tensor_file.Entry]:
    """Name -> facts of every tensor of a file.

    Raises:
        UserError: the file is missing, not safetensors, or incomplete.
    """
    try:
        return tensor_file.header(path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError:
        raise UserError(f"{path}: no complete safetensors file; {_COPY_AGAIN}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}; {_COPY_AGAIN}") from None


def shapes(path: Path) -> dict[str, list[int]]:
    """Name -> shape of every tensor of a weight file, without reading their values."""
    if path.suffix == ".safetensors":
        return {name: entry.shape for name, entry in safetensors_header(path).items()}
    import torch

    state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: holds more than named tensors; give the published weights")
    return {name: list(value.shape) for name, value in state.items()}


def _no_folder(folder: Path) -> str:
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)):
        return (
            f"there is no model folder {folder}; hub names are not looked up: download it and give the folder"
        )
    return f"model folder {folder} is missing; extractors.*.path must name a local folder"


def _check_weights(path: Path) -> None:
    _refuse_pointer(path)
    if path.suffix == ".safetensors":
        safetensors_header(path)
    else:
        _check_bin(path)


def _check_bin(path: Path) -> None:
    """A zip of raw tensors and one pickle that describes how they fit together."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            cut = file.read(2) in (b"PK", b"")
        reason = (
            "its end is missing; " + _COPY_AGAIN
            if cut
            else ("an old pickle that cannot be read safely; save it as safetensors")
        )
        raise UserError(f"{path}: {reason}")
    try:
        with zipfile.ZipFile(path) as archive:
            (pickle,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            # It is first in the file but found from the end, so a gap in between is detected, too.
            foreign = _foreign_names(archive.read(pickle))
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        raise UserError(f"{path}: no complete file of torch tensors; {_COPY_AGAIN}") from None
    if foreign:
        raise UserError(
            f"{path}: holds pickled code ({foreign[0]}), which is never run; take the weights as safetensors"
        )


def _foreign_names(pickle: bytes) -> list[str]:
    """Imports of a pickle beyond tensors; listing its opcodes runs none of them."""
    found = []
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name == "GLOBAL":
            name = str(argument).replace(" ", ".")
            if not _TENSOR_PARTS.fullmatch(name):
                found.append(name)
        elif opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            # torch.save writes none of these.
            found.append(opcode.name)
    return found


def _check_beside(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; is the model folder complete?")
    _refuse_pointer(path)
    if path.suffix == ".json":
        read_settings(path.parent, path.name)
    elif path.suffix == ".model" and not _readable_pieces(path):
        raise UserError(f"{path}: no readable sentencepiece model; {_COPY_AGAIN}")


def _readable_pieces(path: Path) -> bool:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path)).get_piece_size() > 0
    except (OSError, RuntimeError):
        return False


def _refuse_pointer(path: Path) -> None:
    with open(path, "rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            raise UserError(f"{path}: only a Git LFS pointer; fetch the file itself (git lfs pull)")
