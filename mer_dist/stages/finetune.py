"""Fine-tune extractors: one adapter per fold without that fold, and one on every labelled clip.

The cross-fitted adapters give each labelled clip features that never depend on its own label; the
adapter trained on all of them serves the unlabelled clips. The best epoch is chosen on clips held
out of an adapter's training clips, never on its fold: a clip must not choose its own extractor.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mer_dist.config.config import Config
from mer_dist.core.errors import Stopped, UserError
from mer_dist.core.log import logger
from mer_dist.core.stopping import ShouldStop, never
from mer_dist.crossfit import adapters
from mer_dist.crossfit.adapters import Adapter
from mer_dist.models.family import family_of
from mer_dist.processes.env import process_info
from mer_dist.processes.threads import torch_threads
from mer_dist.shards.settings import check_settings
from mer_dist.storage import files, timings
from mer_dist.storage.run_folder import AdapterFolder, Run
from mer_dist.training import caches
from mer_dist.training.partition import PAD_INDEX

if TYPE_CHECKING:
    from accelerate import Accelerator


def unfinished(config: Config) -> list[Adapter]:
    """The adapters that are missing or were trained on something else."""
    return [
        adapter
        for adapter in adapters.planned(config)
        if not files.read_marker(adapter.folder, adapter.fingerprint)
    ]


def finetune(config: Config, should_stop: ShouldStop = never) -> None:
    """Train every missing adapter. Runs alone or as one of the ranks of a launcher."""
    check_settings(config)
    planned = adapters.planned(config)
    missing = unfinished(config)
    if not planned or not (missing or process_info().launched):
        logger.info("finetune: nothing to train")
        return
    with torch_threads(config.run.threads):
        _train_missing(config, planned, missing, should_stop)


def _train_missing(
    config: Config, planned: list[Adapter], missing: list[Adapter], should_stop: ShouldStop
) -> None:
    """Train the ``missing`` adapters in this process and the others of its launcher."""
    from mer_dist.models.classifier import check_files
    from mer_dist.training.accelerator import (
        any_rank,
        broadcast_object,
        offloaded_to,
        unknown_kind,
        zero_stage,
    )
    from mer_dist.training.supported import check, check_batches

    for adapter in missing:
        check_files(adapter.extractor)
        if process_info().rank == 0 and files.read_marker(adapter.folder):
            logger.warning(
                "%s/%s was trained with other settings, models or clips; it is trained again",
                adapter.name,
                adapter.variant,
            )
        if process_info().rank == 0 and (absent := _never_seen(adapter, planned)):
            logger.warning(
                "%s/%s never sees a clip labelled %s: all that it could learn from are in fold "
                "%d, which it leaves out",
                adapter.name,
                adapter.variant,
                " or ".join(absent),
                adapter.held_out_fold,
            )
    _fix_workspaces(planned)
    run = Run(config.run.folder)
    if process_info().launched:
        caches.use_writable(run.caches)
    accelerator = _come_together(config, run, planned[0], should_stop)
    check(zero_stage(accelerator), offloaded_to(accelerator), unknown_kind(accelerator))
    check_batches(config, accelerator.num_processes)
    if accelerator.is_main_process:
        accelerator.init_trackers("finetune")
    # Rank 0 decides what is missing: another rank might see the folders a moment later.
    names = broadcast_object(accelerator, [(adapter.name, adapter.variant) for adapter in missing])
    logger.info("%d adapters to train on %d processes", len(names), accelerator.num_processes)
    try:
        for adapter in planned:
            if (adapter.name, adapter.variant) not in names:
                # A kill after the adapter was complete leaves its checkpoints.
                if accelerator.is_main_process:
                    shutil.rmtree(run.checkpoints(adapter.name, adapter.variant), ignore_errors=True)
                continue
            if any_rank(accelerator, should_stop()):
                raise Stopped(f"asked to stop before {adapter.name}/{adapter.variant}")
            train(accelerator, adapter, config, should_stop)
    except Stopped:
        accelerator.end_training()
        raise
    # Without this, a rank sometimes dies of SIGABRT when the process group ends.
    accelerator.end_training()


def _come_together(config: Config, run: Run, first: Adapter, should_stop: ShouldStop) -> Accelerator:
    """Join all ranks in the process group.

    Raises:
        Stopped: a stop was requested meanwhile.
    """
    from mer_dist.training.accelerator import make_accelerator

    try:
        return make_accelerator(
            first.extractor.finetuning.precision,
            config.trackers,
            run.tracking,
            config.run.threads,
            config.run.timeout_minutes,
        )
    except RuntimeError:
        # The signal also reaches the compiler of DeepSpeed's operators, or a rank that the others wait for.
        if should_stop():
            raise Stopped("asked to stop while the ranks came together") from None
        raise


def _fix_workspaces(planned: list[Adapter]) -> None:
    """Fix cuBLAS's workspace before CUDA starts if a training is deterministic: each of several workspaces
    has its own order of summation."""
    if any(adapter.extractor.finetuning.deterministic for adapter in planned):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def _never_seen(adapter: Adapter, planned: list[Adapter]) -> list[str]:
    """Labels that other adapters of the extractor learn and this one has no clip of."""
    known = {label for other in planned if other.name == adapter.name for label in other.labels.values()}
    return sorted(known - {*adapter.labels.values()})


def train(accelerator, adapter: Adapter, config: Config, should_stop: ShouldStop = never) -> None:
    """Train one adapter on all ranks, leave it complete in its folder, and free its memory."""
    from mer_dist.models.precision import products
    from mer_dist.training.accelerator import free

    # In float32, convolutions would use TF32 by torch's default.
    with products(adapter.extractor.finetuning.precision, accelerator.device):
        _train(accelerator, adapter, config, should_stop)
    # Only here no name refers to its model any more.
    free(accelerator)


def _train(accelerator, adapter: Adapter, config: Config, should_stop: ShouldStop) -> None:
    from mer_dist.models.classifier import save, trainable_classifier
    from mer_dist.training.accelerator import gather_full_params, zero_stage
    from mer_dist.training.checkpoint import Checkpoints
    from mer_dist.training.trainer import Trainer

    run = Run(config.run.folder)
    underway = run.checkpoints(adapter.name, adapter.variant)
    classifier = trainable_classifier(
        adapter.extractor, len(config.corpus.labels), config.run.seed, zero_stage(accelerator) > 0
    )
    task = _task(adapter, config, classifier.extractor, _budget(accelerator, adapter))
    checkpoints = Checkpoints(
        accelerator, underway, adapter.fingerprint, config.run.keep_checkpoints, config.run.checkpoint_minutes
    )
    trainer = Trainer(
        accelerator, classifier, task, adapter.extractor.finetuning, config.run.seed, checkpoints, should_stop
    )

    def on_best(model, epoch: int) -> None:
        trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
        weights = gather_full_params(accelerator, trainable)
        if accelerator.is_main_process:
            with files.atomic_folder(checkpoints.best(epoch)) as folder:
                save(model, weights, folder)
                files.write_marker(folder, adapter.fingerprint, content=files.contents(folder.iterdir()))
            checkpoints.forget_best_but(epoch)
        accelerator.wait_for_everyone()

    def on_epoch_end(epoch: int, seconds: float, clips: int) -> None:
        if accelerator.is_main_process:
            timings.note(
                run, "finetune", adapter.folder, seconds=seconds, clips=clips, piece=f"epoch {epoch}"
            )

    history = trainer.run(on_best, on_epoch_end)
    if remark := classifier.extractor.note():
        # Each rank reads a part of the clips.
        logger.info("%s/%s: of the clips read here, %s", adapter.name, adapter.variant, remark)
    if accelerator.is_main_process:
        best = checkpoints.best(history["best_epoch"])
        if faults := checkpoints.faults_of_best(history["best_epoch"]):
            raise UserError(
                f"{underway}: the weights of the best epoch are damaged ({'; '.join(faults)}); "
                "start again, and training goes on from a checkpoint before them"
            )
        _finish(adapter, best, history, accelerator.num_processes, zero_stage(accelerator))
        shutil.rmtree(underway)
    accelerator.wait_for_everyone()


def _finish(adapter: Adapter, best: Path, history: dict, processes: int, zero_stage: int) -> None:
    """Publish the weights of the best epoch, just found undamaged, as the finished adapter."""
    with files.atomic_folder(adapter.folder) as folder:
        # Links, so that the best weights stay if this is interrupted.
        shutil.copytree(best, folder, copy_function=os.link, dirs_exist_ok=True)
        files.write_json(AdapterFolder(folder).history, history)
        content = files.required_marker(best)["content"] | files.contents([AdapterFolder(folder).history])
        files.write_marker(
            folder,
            adapter.fingerprint,
            processes=processes,
            held_out_fold=adapter.held_out_fold,
            zero_stage=zero_stage,
            content=content,
        )


def _budget(accelerator: Accelerator, adapter: Adapter) -> float:
    """Budget of one forward and backward pass: the smallest of all ranks, because they cut the batches
    alike."""
    import torch

    from mer_dist.planning.layouts import USABLE
    from mer_dist.training.accelerator import all_gather_object

    on_gpu = accelerator.device.type == "cuda"
    memory = USABLE * torch.cuda.get_device_properties(accelerator.device).total_memory if on_gpu else None
    own = family_of(adapter.extractor.family, adapter.extractor.path)
    return min(all_gather_object(accelerator, own.training_budget(memory)))


def _task(adapter: Adapter, config: Config, extractor, budget: float):
    from mer_dist.shards.reader import Reader
    from mer_dist.training.partition import Passes
    from mer_dist.training.trainer import Task

    settings = adapter.extractor.finetuning
    labels = config.corpus.labels
    targets = np.array([labels.index(label) for label in adapter.labels.values()])
    groups = [adapter.group_of.get(row.name, row.name) for row in adapter.rows]
    train, held_out = _hold_out(targets, settings.validation, config.run.seed, groups)
    segments, longest = np.array([extractor.shape(row) for row in adapter.rows], float).T
    shortest = np.lexsort((longest, segments))[0]
    reader = Reader(Run(config.run.folder).shards)

    def load(positions: np.ndarray):
        real = positions[positions != PAD_INDEX]
        padding = real[0] if len(real) else shortest
        rows = [adapter.rows[padding if row == PAD_INDEX else row] for row in positions]
        samples = (reader.read(row, extractor.modality) for row in rows)
        return extractor.collate_clips([extractor.prepare(sample) for sample in samples])

    return Task(
        load=load,
        targets=targets,
        train=train,
        held_out=held_out,
        class_weights=_class_weights(targets[train], len(labels), settings.class_weights),
        passes=Passes.of(settings, segments, longest, budget),
        name=f"{adapter.name}/{adapter.variant}",
    )


def _hold_out(
    targets: np.ndarray, share: float, seed: int, groups: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Stratified positions to train on and to choose the epoch by, each group in one of the two; both are all positions
    if too few can be held out."""
    from sklearn.model_selection import StratifiedGroupKFold, train_test_split

    positions = np.arange(len(targets))
    classes = Counter(targets.tolist())
    wanted = round(share * len(targets))
    parts = min(max(round(1 / share), 2), len({*groups})) if share else 0
    if wanted < len(classes) or min(classes.values()) < 2 or parts < 2:
        logger.warning(
            "too few clips to hold some out; epochs are judged on the clips that they train on, "
            "and WAF is theirs"
        )
        return positions, positions
    if len({*groups}) < len(targets):
        return next(
            StratifiedGroupKFold(parts, shuffle=True, random_state=seed).split(positions, targets, groups)
        )
    train, held_out = train_test_split(positions, test_size=wanted, stratify=targets, random_state=seed)
    return np.sort(train), np.sort(held_out)


def _class_weights(targets: np.ndarray, classes: int, rule: str) -> np.ndarray:
    """Weights with mean 1 over the clips: all equal, or inverse to each class's count."""
    if rule == "none":
        return np.ones(classes)
    counts = np.bincount(targets, minlength=classes)
    return len(targets) / (np.maximum(counts, 1) * np.count_nonzero(counts))
