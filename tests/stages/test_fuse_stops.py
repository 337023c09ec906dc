"""A signal to fuse is seen within a step of whatever takes long, and costs no more than the piece at hand."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import fusion_run
import killing
import pytest

from mer_dist.config import config as configuration
from mer_dist.core.errors import Stopped
from mer_dist.fusion import ensemble, label_shift, linear_probe
from mer_dist.processes import preempt
from mer_dist.stages.fuse import fuse
from mer_dist.storage.run_folder import Run

#: What is called once in a step, and which call of it meets the signal: of a probe; of the models that
#: leave out two folds, which choose the dropout; of the round itself; of its prediction; of a later round;
#: of the estimate of the label shares.
STEPS = {
    "probe": (linear_probe, "for_all_labels", 20, "in a linear probe", 0),
    "held-out models": (ensemble, "_warm_cosine", 2, "in AGT", 0),
    "round": (ensemble, "_warm_cosine", 4, "in AGT", 0),
    "prediction": (ensemble.F, "log_softmax", 11, "in AGT", 0),
    "later round": (ensemble, "_warm_cosine", 8, "in AGT [+] self-training round 1", 1),
    "label shares": (label_shift, "em", 3, "in the vote", 2),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A run ready to be fused, and what fuse makes of it undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    config, _ = fusion_run.make(folder, labeled=30, unlabeled=30, epochs=2)
    shutil.copytree(folder, folder / "before")
    with pytest.MonkeyPatch.context() as patch:
        # Several parts of a prediction.
        patch.setattr(ensemble, "PREDICT_ROWS", 60)
        fuse(config)
        yield folder, killing.outputs(Path(config.run.folder))


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_signal_ends_it_within_a_step_and_the_next_call_ends_in_the_same_bytes(whole, monkeypatch, step):
    folder, outputs = whole
    shutil.rmtree(folder / "run")
    shutil.copytree(folder / "before" / "run", folder / "run")
    config = configuration.load(folder / "job.yaml")
    module, name, number, told, rounds = STEPS[step]
    act, calls = getattr(module, name), []

    def counted(*arguments, **options):
        calls.append(name)
        if len(calls) == number:
            signal.raise_signal(signal.SIGTERM)
        return act(*arguments, **options)

    monkeypatch.setattr(module, name, counted)
    with pytest.raises(Stopped, match=f"asked to stop {told}; the next start goes on"):
        with preempt.listening():
            fuse(config, preempt.asked)
    assert len(calls) == number, "another step was taken after the signal"
    run = Run(config.run.folder)
    assert [one.number for one in run.rounds()] == [*range(min(rounds, 2))] and not run.answer.exists()
    monkeypatch.setattr(module, name, act)
    fuse(config)
    assert killing.outputs(run.folder) == outputs
