"""A bundle: what predicting needs of a run, in a folder that others can be given.

::

    bundle/
      README.md            the model card
      bundle.json          how clips are cut, the extractors, and what their base models are known by
      fusion.json, fusion.safetensors
      adapters/<name>/     of an extractor that was fine-tuned
      models/<name>/       with ``merged``: the extractor with its adapter merged into it
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mer_dist import __version__
from mer_dist.config.config import as_dict
from mer_dist.config.sections import ExtractConfig, ExtractorConfig, ShardConfig
from mer_dist.core.errors import UserError, reading
from mer_dist.core.log import logger
from mer_dist.core.registry import ENCODERS
from mer_dist.fusion.trained import TrainedFusion
from mer_dist.models import model_folder
from mer_dist.predict.model import TrainedExtractor, TrainedModel
from mer_dist.storage import files

NAME, CARD = "bundle.json", "README.md"
#: Raise it when the files of a bundle change.
FORMAT = 1
AGAIN = "make the bundle again"
#: Bytes of a file whose content is not read again to compare it.
_LARGE = 1 << 30
#: Keys of ``shard`` that are of one machine or corpus.
_LOCAL = ("workers", "openface", "remove", "without_media")


def load(folder: Path, models: Mapping[str, Path] | None = None, labeled: bool = False) -> TrainedModel:
    """What is in a run folder or a bundle.

    Args:
        labeled: of a run with what estimating the class prior of new clips needs, which bundles always have.
        models: extractor -> folder of its base model, where that has moved.

    Raises:
        UserError: there is neither, or a file is missing, damaged, or of another model or version.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; name a run folder, or a bundle{files.started_from(folder)}"
        )
    if (folder / NAME).exists():
        return read(folder, models or {})
    return TrainedModel.of_run(folder, models, labeled)


def write(run_folder: Path, folder: Path, merged: bool = False) -> None:
    """Write what predicting needs of a run into a new folder.

    Args:
        merged: write fine-tuned extractors as whole models, which need no base model.

    Raises:
        UserError: the run has not voted, needs code of the user's own, or the folder is not empty.
    """
    from mer_dist.predict import card

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; name a new folder")
    if (run_folder / NAME).exists():
        raise UserError(f"{run_folder}: that is a bundle already; it may be copied as it is")
    model = TrainedModel.of_run(run_folder, labeled=True)
    for one in model.extractors:
        if one.config.family not in ENCODERS.built_in:
            raise UserError(
                f"extractors.{one.name}: its family {one.config.family} is code of your own, which a bundle does not "
                "carry; predict from the run folder"
            )
    model.check()
    with files.atomic_folder(folder) as target:
        model.fusion.save(target)
        extractors = {one.name: _extractor(run_folder, one, target, merged) for one in model.extractors}
        facts = {
            "format": FORMAT,
            "made by": f"mer_dist {__version__}",
            "fingerprint": model.fingerprint,
            "shard": {key: value for key, value in as_dict(model.shard).items() if key not in _LOCAL},
            "openface": model.openface,
            "language": model.language,
            "teachers": model.teachers,
            "extract": as_dict(model.extract),
            "extractors": extractors,
        }
        facts["content"] = _content(target, sorted(path for path in target.rglob("*") if path.is_file()))
        files.write_json(target / NAME, facts | {"checksum": files.fingerprint_of(facts)})
        files.write_text(
            target / CARD,
            card.text(run_folder, model, [name for name, own in extractors.items() if own["base"]]),
        )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    logger.info("%s: %.1f MiB; what it is: %s", folder, size / 2**20, folder / CARD)


def _extractor(run_folder: Path, one: TrainedExtractor, target: Path, merged: bool) -> dict[str, Any]:
    """Write the files of an extractor; returns its entry in ``bundle.json``."""
    settings = {key: value for key, value in as_dict(one.config).items() if key not in ("finetune", "path")}
    entry: dict[str, Any] = {"set": one.set_name, "settings": settings, "files": ""}
    entry["base"], entry["base_name"] = None, Path(one.config.path).name
    if one.adapter is not None and merged:
        from mer_dist.interop import export_model

        entry["files"] = f"models/{one.name}"
        note = export_model.write_whole(one.config, one.adapter, target / entry["files"])
        if note:
            logger.warning("extractor %s: %s", one.name, note)
        # Plain weights: what was quantised is merged into dequantised ones.
        return entry | {"settings": settings | {"quantize": "none"}}
    if one.adapter is not None:
        entry["files"] = f"adapters/{one.name}"
        shutil.copytree(one.adapter, target / entry["files"], copy_function=shutil.copyfile)
        if not (one.adapter / "adapter_config.json").exists():  # fine-tuned in full
            return entry
    return entry | {"base": one.base or model_folder.identity(Path(one.config.path), one.config.family)}


def _content(folder: Path, paths: list[Path]) -> dict[str, list[int]]:
    """Path in the bundle -> size and CRC-32; of large files, which take minutes to read, the size alone."""
    found = {}
    for path in paths:
        size = path.stat().st_size
        crc = files.contents([path])[path.name][1] if size <= _LARGE else 0
        found[path.relative_to(folder).as_posix()] = [size, crc]
    return found


def _check_content(folder: Path, expected: dict[str, list[int]]) -> None:
    """
    Raises:
        UserError: a file is missing or damaged.
    """
    for name, facts in expected.items():
        path = folder / name
        if not path.is_file() or _content(folder, [path])[name] != facts:
            raise UserError(
                f"{path}: missing, or other bytes than were written; copy the bundle or make it again"
            )


def read(folder: Path, models: Mapping[str, Path]) -> TrainedModel:
    """What is in a bundle.

    Raises:
        UserError: a file is missing or damaged, another version made it, or a base model is missing or another.
    """
    path = folder / NAME
    with reading(path, AGAIN):
        facts = files.read_json(path)
        if facts["format"] != FORMAT:
            raise UserError(
                f"{path}: its format is {facts['format']} ({facts.get('made by')}), and this version of mer-dist, "
                f"{__version__}, reads {FORMAT}; {AGAIN} with this version"
            )
        checksum = facts.pop("checksum")
        if checksum != files.fingerprint_of(facts):
            raise UserError(f"{path}: it was changed since it was written; copy the bundle or make it again")
        _check_content(folder, facts["content"])
        known = [str(name) for name in facts["extractors"]]
        if unknown := sorted(models.keys() - {*known}):
            raise UserError(
                f"--models {unknown[0]}=…: the bundle has no such extractor; it has: {', '.join(known) or 'none'}"
            )
        model = TrainedModel(
            fusion=TrainedFusion.load(folder),
            shard=ShardConfig(**facts["shard"]),
            openface=bool(facts["openface"]),
            language=str(facts["language"]),
            teachers=[str(name) for name in facts["teachers"]],
            extract=ExtractConfig(**facts["extract"]),
            extractors=[
                _read_extractor(folder, name, entry, models.get(name))
                for name, entry in facts["extractors"].items()
            ],
            fingerprint=str(facts["fingerprint"]),
            folder=folder,
        )
    return model


def _read_extractor(
    folder: Path, name: str, entry: dict[str, Any], elsewhere: Path | None
) -> TrainedExtractor:
    config = ExtractorConfig(**entry["settings"], path=str(elsewhere or ""))
    if config.family not in ENCODERS.built_in:
        raise ValueError(f"its family {config.family} is not one of mer-dist")
    own = folder / entry["files"] if entry["files"] else None
    if own is not None and own.resolve().parent.parent != folder.resolve():
        raise ValueError(f"the files of {name} lie outside the bundle")
    if entry["base"] is None:
        if elsewhere is not None:
            logger.warning("--models %s=%s is not read: the whole model is in the bundle", name, elsewhere)
        return TrainedExtractor(
            set_name=entry["set"], name=name, config=replace(config, path=str(own)), adapter=None, base=None
        )
    if elsewhere is None:
        raise UserError(
            f"the extractor {name} needs its base model, {entry['base_name']}; name its folder: --models {name}=FOLDER"
        )
    return TrainedExtractor(set_name=entry["set"], name=name, config=config, adapter=own, base=entry["base"])
