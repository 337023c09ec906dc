"""What fusion learned answers clips: those of the run as the run did, each by itself, and from another folder."""

from __future__ import annotations

from dataclasses import replace

import fusion_run
import numpy as np
import pytest
import safetensors.numpy

from mer_dist.core.errors import UserError
from mer_dist.features import store
from mer_dist.features.store import FeatureSet
from mer_dist.fusion import predictions, trained
from mer_dist.fusion.trained import FusionPredictor, TrainedFusion
from mer_dist.stages.fuse import fuse
from mer_dist.storage import files
from mer_dist.storage.run_folder import ALL_SETS, STACKED, Run

pytestmark = pytest.mark.slow
#: Clips that lack one set, and one that lacks all.
LACKING = {"voice": {100, 130, 150}, "face": {101, 150}, "line": {150}}


def make(folder, *overrides: str, **how):
    """A fused run whose unlabelled clips lack some sets; config, run, and what each set holds."""
    config, truth = fusion_run.make(folder, **how)
    run, held = Run(config.run.folder), {}
    for name, lacking in LACKING.items():
        found = store.load(run.features(name))
        keep = [row for row in range(len(truth)) if row not in lacking]
        names = [found.names[row] for row in keep]
        held[name] = FeatureSet(modality=found.modality, names=names, utterance=found.utterance[keep])
        fusion_run.write_set(run, name, found.modality, names, held[name].utterance)
    config = fusion_run.configure(folder, overrides=("vote.prior=none", *overrides), epochs=3, rounds=1)
    fuse(config)
    return config, run, held


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("trained"))


def unlabeled(run: Run) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, probabilities and labels of the vote."""
    made = predictions.read(run.vote.predictions)
    own = ~made.labeled
    return (
        [name for name, is_own in zip(made.names, own, strict=True) if is_own],
        made.probability[own],
        made.answer[own],
    )


def test_the_unlabelled_clips_of_the_run_get_the_same_answers(made):
    config, run, held = made
    names, probability, answer = unlabeled(run)
    found = FusionPredictor(TrainedFusion.of_run(config, run))(held, names)
    assert np.abs(found.probability - probability).max() < 1e-5
    assert np.array_equal(found.probability.argmax(1), answer)
    assert [names[row] for row in np.flatnonzero(~found.present)] == ["clip_0150"]
    # What each set says alone is what its linear probe says.
    probe = predictions.read(run.linear_probes.predictions("voice"))
    assert np.abs(found.alone["voice"] - probe.probability[~probe.labeled]).max() < 1e-5
    assert found.valid["voice"].sum() == len(names) - len(LACKING["voice"])


def test_a_clips_answer_does_not_depend_on_its_company(made):
    config, run, held = made
    predict = FusionPredictor(TrainedFusion.of_run(config, run))
    names, *_ = unlabeled(run)
    together = predict(held, names).probability
    for size in (1, 2):
        for start in (0, 10, 40, 60):
            own = slice(start, start + size)
            assert np.abs(predict(held, names[own]).probability - together[own]).max() < 1e-5


def test_what_is_saved_answers_the_same_elsewhere_and_holds_no_clip(made, tmp_path):
    config, run, held = made
    learned = TrainedFusion.of_run(config, run)
    learned.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fusion.json", "fusion.safetensors"]
    assert (
        "clip_" not in (tmp_path / "fusion.json").read_text()
        and "labels.csv" not in (tmp_path / "fusion.json").read_text()
    )
    names, *_ = unlabeled(run)
    before, after = (
        FusionPredictor(one)(held, names).probability for one in (learned, TrainedFusion.load(tmp_path))
    )
    assert np.array_equal(before, after)


@pytest.mark.parametrize(
    "row", ["linear_probes/voice", f"linear_probes/{ALL_SETS}", f"linear_probes/{STACKED}", "rounds/01"]
)
def test_every_row_of_the_table_can_answer(made, row):
    config, run, held = made
    learned = TrainedFusion.of_run(config, run)
    arrays = learned.arrays | {row: trained._arrays(run, row)}
    found = FusionPredictor(replace(learned, answered_by=row, arrays=arrays))(held, unlabeled(run)[0])
    path = run.folder / row
    expected = predictions.read(
        path / "predictions.parquet" if path.is_dir() else path.with_suffix(".parquet")
    )
    assert np.abs(found.probability - expected.probability[~expected.labeled]).max() < 1e-5


def test_the_row_that_answered_the_run_is_known(tmp_path):
    config, run, held = make(tmp_path, "vote.answer=best")
    part = files.read_json(run.vote.prior)["answered_by_row"]["part"]
    learned = TrainedFusion.of_run(config, run)
    assert learned.answered_by == part and part in ("vote", *learned.arrays)
    names, *_ = unlabeled(run)
    told = dict(line.split(",") for line in run.answer.read_text().split()[1:])
    answer = FusionPredictor(learned)(held, names).probability.argmax(1)
    assert {name: learned.labels[row] for name, row in zip(names, answer, strict=True)} == told


@pytest.mark.parametrize(
    "options",
    [
        ("vote.kind=hard",),
        ("fuse.model=mlp",),
        ("fuse.model=attention", "self_train.start=warm"),
        ("fuse.fusion=concatenate",),
    ],
)
def test_other_models_and_votes_answer_as_in_the_run(tmp_path, options):
    config, run, held = make(tmp_path, *options)
    names, probability, _ = unlabeled(run)
    predict = FusionPredictor(TrainedFusion.of_run(config, run))
    assert np.abs(predict(held, names).probability - probability).max() < 1e-5
    assert bool(predict(held, names, explain=True).gates) == (options == ("vote.kind=hard",))


def test_gates_are_weights_of_the_channels_that_a_clip_has(made):
    config, run, held = made
    names, *_ = unlabeled(run)
    gates = FusionPredictor(TrainedFusion.of_run(config, run))(held, names, explain=True).gates
    assert [*gates] == ["audio", "video", "text"]
    whole = np.stack([*gates.values()], 1)
    nothing = names.index("clip_0150")
    assert np.isnan(whole[nothing]).all()
    assert np.abs(np.delete(whole, nothing, 0).sum(1) - 1).max() < 1e-6
    assert gates["audio"][names.index("clip_0100")] == 0 and gates["video"][names.index("clip_0101")] == 0


def test_what_does_not_fit_is_refused_in_a_line(made, tmp_path):
    config, run, held = made
    learned = TrainedFusion.of_run(config, run)
    wide = replace(held["voice"], utterance=np.tile(held["voice"].utterance, 2))
    with pytest.raises(
        UserError, match="features voice: they have 24 numbers a clip, and the model learned from 12"
    ):
        FusionPredictor(learned)(held | {"voice": wide}, ["clip_0100"])
    with pytest.raises(UserError, match="it has not voted yet; run fuse first"):
        TrainedFusion.of_run(config, Run(tmp_path / "none"))
    learned.save(tmp_path)
    facts = files.read_json(tmp_path / "fusion.json")
    for change, why in (
        ({"format": 0}, "its format is 0"),
        ({"settings": facts["settings"] | {"model": "mine"}}, "mine"),
        ({"pooling": {}}, "make the bundle again"),
    ):
        files.write_json(tmp_path / "fusion.json", facts | change)
        with pytest.raises(UserError, match=why):
            TrainedFusion.load(tmp_path)
    files.write_json(tmp_path / "fusion.json", facts)
    (tmp_path / "fusion.safetensors").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(UserError, match="fusion.safetensors"):
        TrainedFusion.load(tmp_path)


def test_a_run_of_an_earlier_version_says_what_to_do(made, tmp_path):
    config, run, _ = made
    import shutil

    copy = Run(shutil.copytree(run.folder, tmp_path / "copy"))
    told = files.read_json(copy.vote.prior)
    del told["pooling"]
    files.write_json(copy.vote.prior, told)
    with pytest.raises(UserError, match="an earlier version of mer-dist made its models; run fuse again"):
        TrainedFusion.of_run(config, copy)
    arrays = safetensors.numpy.load_file(run.linear_probes.arrays("voice"))
    files.write_bytes(
        run.linear_probes.arrays("voice"), safetensors.numpy.save({"nested_oof": arrays["nested_oof"]})
    )
    with pytest.raises(UserError, match="run fuse again"):
        FusionPredictor(TrainedFusion.of_run(config, run))
    files.write_bytes(run.linear_probes.arrays("voice"), safetensors.numpy.save(arrays))
