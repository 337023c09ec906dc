"""Exports an adapter or fine-tuned weights as a model folder in the Hugging Face layout."""

from __future__ import annotations

import shutil
from pathlib import Path

from mer_dist.config import config as configuration
from mer_dist.config.config import Config
from mer_dist.config.sections import ExtractorConfig
from mer_dist.core.errors import UserError
from mer_dist.core.log import logger
from mer_dist.crossfit import adapters
from mer_dist.crossfit.adapters import Adapter
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run


def export(
    run: Run,
    name: str,
    folder: Path,
    step: int | None = None,
    adapter_only: bool = False,
    precision: str | None = None,
) -> None:
    """Write the adapter or fine-tuned weights ``<extractor>@<variant>`` of a run to ``folder``.

    The source is the finished adapter or, if there is none or ``step`` is given, a checkpoint of its
    training, with ZeRO's partitions joined. LoRA is merged, unless ``adapter_only``, into the weights that it
    was trained on. Quantised weights are dequantised to ``precision``, by default that of the extractor, fp32
    for ``auto``. ``head.safetensors`` is included.

    What was written, and how it differs from the trained model, is logged.

    Raises:
        UserError: no such adapter or checkpoint, ``folder`` is not empty, or ``precision`` is given and
            nothing is merged.
    """
    from mer_dist.models.classifier import check_files

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; name a new folder")
    config = configuration.of_run(run)
    adapter = _find(config, name)
    if adapter_only and adapter.extractor.finetuning.method == "full":
        raise UserError(f"{name} was trained in full and has no adapter; leave out --adapter")
    merging = adapter.extractor.finetuning.method == "lora" and not adapter_only
    if precision and not merging:
        raise UserError(
            f"--precision is that of merged weights, and nothing is merged: {name} is written as it was saved"
        )
    finished = step is None and files.read_marker(adapter.folder, adapter.fingerprint)
    if finished:
        # Checked here and not in the new folder, so that an error names the damaged file.
        adapters.check_whole(adapter.folder)
        check_files(adapter.extractor, adapter.folder)
    with files.atomic_folder(folder) as target:
        if not finished:
            what = _from_checkpoint(config, adapter, step, target)
        else:
            what = "as finished, at its best epoch"
            shutil.copytree(adapter.folder, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
            (target / files.MARKER).unlink()
        # This is the order of the head's rows.
        files.write_json(target / "labels.json", config.corpus.labels)
        note = ""
        if merging:
            note = _merge(adapter.extractor, target, precision or _exact(adapter.extractor.precision))
        elif adapter_only and adapter.extractor.quantize != "none":
            note = (
                f"it was trained on weights quantised to {adapter.extractor.quantize} and fits only "
                f"{adapter.extractor.path} quantised in the same way"
            )
    logger.info("%s, %s, is in %s", name, what, folder)
    if note:
        logger.warning("%s: %s", name, note)


def _exact(precision: str) -> str:
    """The lossless storage type for ``auto`` and ``tf32``, which are compute types."""
    return "fp32" if precision in ("auto", "tf32") else precision


def _find(config: Config, name: str) -> Adapter:
    known = {str(adapter.features): adapter for adapter in adapters.planned(config)}
    if name not in known:
        raise UserError(f"no adapter {name!r} in this run; it has: {', '.join(known) or 'none'}")
    return known[name]


def _from_checkpoint(config: Config, adapter: Adapter, step: int | None, target: Path) -> str:
    """Write what fine-tuning would have saved at ``step``; returns a description of it."""
    from mer_dist.models.classifier import save, trainable_classifier
    from mer_dist.models.extractor import DTYPES
    from mer_dist.training.checkpoint import trained_weights, whole

    where = Run(config.run.folder).checkpoints(adapter.name, adapter.variant)
    found = {int(path.name.partition("-")[2]): path for path in whole(where)}
    if not found or step not in (None, *found):
        if step is None and files.read_marker(adapter.folder):
            raise UserError(
                f"{adapter.folder} was trained on other clips, labels, settings or model files than the run has now (of "
                "model files, size and time count); run finetune again"
            )
        has = f"checkpoints at steps {', '.join(map(str, found))}" if found else "no complete checkpoint"
        raise UserError(f"{where} has {has}; a finished adapter would be in {adapter.folder}")
    chosen = found[max(found) if step is None else step]
    facts = files.read_marker(chosen, adapter.fingerprint)
    if facts is None:
        raise UserError(
            f"{chosen} was trained on other clips or settings than the run has now; run finetune again"
        )
    # A process without DeepSpeed trains and saves float32 weights, whatever the compute type.
    sharded = facts["zero_stage"] > 0
    dtype = DTYPES[adapter.extractor.finetuning.precision if sharded else "fp32"]
    classifier = trainable_classifier(adapter.extractor, len(config.corpus.labels), config.run.seed, sharded)
    save(classifier, trained_weights(chosen, dtype), target)
    progress = facts["progress"]
    return f"not finished, as it was at step {progress['step']} in epoch {progress['epoch']}"


def write_whole(extractor: ExtractorConfig, adapter: Path, target: Path) -> str:
    """Write a finished adapter, LoRA merged, or fully fine-tuned weights as a model folder of its own.

    Returns:
        How it differs from the trained model; empty if it does not.
    """
    shutil.copytree(adapter, target, copy_function=shutil.copyfile)
    (target / files.MARKER).unlink()
    if not (adapter / "adapter_config.json").exists():
        return ""
    return _merge(extractor, target, _exact(extractor.precision))


def _merge(extractor: ExtractorConfig, target: Path, precision: str) -> str:
    """Replace the adapter in ``target`` by its base model with the adapter added to its weights.

    Returns:
        Differences from the trained model, and what to do, for the log; empty if there are none.
    """
    from mer_dist.models.classifier import merged
    from mer_dist.models.extractor import DTYPES

    backbone, lost = merged(extractor, target, DTYPES[precision])
    for path in (*target.glob("adapter_*"), target / "README.md"):
        path.unlink(missing_ok=True)
    backbone.save_pretrained(target)
    notes = []
    if lost:
        notes.append(
            f"rounding the merged weights to {precision} loses {100 * lost:.2g} % of what the "
            "adapter adds to them; --precision fp32 keeps it, in a folder of twice the size"
        )
    if extractor.quantize == "int8":
        notes.append(
            "int8 also rounds the inputs of a layer, which plain weights do not: features differ "
            "that much from those of the run"
        )
    return "; ".join(notes)
