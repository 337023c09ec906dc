"""The comparisons on CMU-MOSI and the ablation: what they draw, read back, leave alone and compare."""

from __future__ import annotations

from pathlib import Path

import fusion_run
import numpy as np
import pytest

from mer_dist.config import config as configuration
from mer_dist.config.config import Config
from mer_dist.core import metrics
from mer_dist.core.errors import UserError
from mer_dist.fusion import predictions
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run

QUICK = ["fuse.epochs=2", "fuse.seeds=1", "fuse.width=16"]

pytestmark = pytest.mark.usefixtures("benchmarks")


@pytest.fixture(scope="module")
def base(shared, tmp_path_factory, benchmarks) -> Path:
    import mosi

    return mosi.import_once(shared / "data" / "cmu-mosi", tmp_path_factory.mktemp("mosi"))


def test_a_clip_that_counts_twice_scores_like_two_clips():
    random = np.random.default_rng(0)
    truth, answer = random.integers(0, 4, 50), random.integers(0, 4, 50)
    times = random.integers(0, 3, (5, 50))
    repeated = [metrics.waf(truth.repeat(own), answer.repeat(own)) for own in times]
    assert metrics.weighted_waf(truth, answer, times) == pytest.approx(repeated)


def test_the_interval_of_a_difference_is_paired_and_widens_where_clips_are_drawn_in_groups():
    from comparison import difference

    random = np.random.default_rng(0)
    group = np.repeat(np.arange(20), 20)
    truth = random.integers(0, 2, 400)
    # Whole groups are answered better by one of the two.
    first = np.where(random.random(20)[group] < 0.5, truth, random.integers(0, 2, 400))
    second = random.integers(0, 2, 400)
    same = difference(truth, first, first, group)
    assert same == {"difference": 0, "low": 0, "high": 0}
    by_clip, by_group = difference(truth, first, second), difference(truth, first, second, group)
    assert by_clip["difference"] == pytest.approx(metrics.waf(truth, first) - metrics.waf(truth, second))
    assert by_group["difference"] == by_clip["difference"]
    assert by_clip["low"] < by_clip["difference"] < by_clip["high"]
    assert by_group["high"] - by_group["low"] > 1.2 * (by_clip["high"] - by_clip["low"])


@pytest.mark.slow
def test_every_fusion_has_the_same_clips_and_folds_and_a_second_call_computes_nothing(base, tmp_path):
    import mosi

    told = dict(mosi.of_seed(base, tmp_path, 3, QUICK))
    assert {"AGT", "attention", "mlp", "linear", mosi.LOGISTIC, mosi.VOTE, "text alone"} <= told.keys()
    truth, videos = mosi.truth_of(base, told["AGT"].names)
    folds_of_videos = set(zip(videos, told["AGT"].fold, strict=True))
    assert len(videos) == 752 and len(folds_of_videos) == len(set(videos)) == 31
    for one in told.values():
        assert one.names == told["AGT"].names and np.array_equal(one.fold, told["AGT"].fold)
        assert one.labeled.all()
    models = [told[name].probability for name in ("AGT", "attention", "mlp", "linear")]
    assert all(np.abs(models[a] - models[b]).max() > 0.01 for a in range(4) for b in range(a))
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*predictions.parquet")}
    again = dict(mosi.of_seed(base, tmp_path, 3, QUICK))
    assert len(written) == 8
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*predictions.parquet")} == written
    of_seeds = {title: [one, again[title]] for title, one in told.items()}
    facts = {
        "command": "",
        "seeds": [3, 3],
        "clips": 752,
        "videos": 31,
        "rows": mosi.rows(of_seeds, truth),
        "differences": mosi.differences(of_seeds, truth, videos),
        "errors": mosi.errors(of_seeds, truth),
    }
    wrong = (mosi.averaged(of_seeds["AGT"]) != truth).mean()
    assert facts["errors"]["AGT wrong"] == wrong > facts["errors"]["AGT wrong, truth negative"] > 0
    assert f"{100 * metrics.waf(truth, told[mosi.LOGISTIC].answer):.2f} ± 0.00" in mosi.table(facts)


@pytest.fixture(scope="module")
def trial(base, tmp_path_factory):
    from few_labels import Trial

    return Trial.make(base, tmp_path_factory.mktemp("few"), 30, 0, [*QUICK, "self_train.rounds=1"])


@pytest.mark.slow
def test_held_out_videos_are_not_in_the_run_and_as_many_clips_as_asked_are_labelled(trial):
    video = {name.rpartition("_")[0] for name in trial.clips.names}
    new = {name.rpartition("_")[0] for name in trial.held_out}
    assert trial.clips.labeled.sum() == 30 and len(trial.clips.names) + len(trial.held_out) == 752
    assert len(new) == 9 and len(video) == 22 and not video & new
    known = trial.clips.labeled
    assert np.array_equal(trial.clips.truth[known], trial.truth[: len(known)][known])
    assert abs(trial.truth[: len(known)][known].mean() - trial.truth[: len(known)].mean()) < 0.03


@pytest.mark.slow
def test_models_read_back_tell_of_unlabelled_clips_what_the_round_told(trial):
    rows = np.flatnonzero(~trial.clips.labeled)
    for number in (0, 1):
        told = predictions.read(Run(trial.config.run.folder).round(number).predictions)
        assert trial.probability(number)[rows] == pytest.approx(told.probability[rows], abs=1e-5)


@pytest.mark.slow
def test_figures_of_few_labels_are_those_of_the_answers(trial):
    from few_labels import LOGISTIC, summary, table, title

    judged = trial.judge()
    new = slice(len(trial.clips.names), None)
    own = metrics.waf(trial.truth[new], trial.probability(1)[new].argmax(1))
    assert judged["waf"][title(1)]["inductive"] == own
    (pseudo,) = judged["pseudo"]
    assert 0.2 < pseudo["taken"] <= 0.55 and 0.5 < pseudo["right"] <= 1
    assert judged["waf"][LOGISTIC]["inductive"] > 0.6
    assert f"{100 * own:.2f}" in table(summary(30, [judged]))


def contents(folder: Path) -> dict[str, str]:
    return {str(path): files.digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def changed(config: Config) -> dict:
    """Keys of fuse, self_train and vote that are not the defaults."""
    parts = {
        name: (getattr(config, name), getattr(Config(run=config.run), name))
        for name in ("fuse", "self_train", "vote")
    }
    return {
        f"{name}.{key}": value
        for name, (own, default) in parts.items()
        for key, value in vars(own).items()
        if value != getattr(default, key)
    }


@pytest.mark.slow
def test_a_variant_differs_from_the_defaults_by_its_change_and_leaves_the_run_alone(tmp_path):
    from ablation import FULL, demo_case, run_all, table

    config, truth = fusion_run.make(tmp_path / "given", epochs=1)
    names = fusion_run.names(len(truth))
    rows = [f"{name},{fusion_run.LABELS[own]}\n" for name, own in zip(names[90:], truth[90:], strict=True)]
    files.write_text(tmp_path / "truth.csv", "name,label\n" + "".join(rows))
    before = contents(tmp_path / "given")
    case = demo_case(f"{config.run.folder}:{tmp_path / 'truth.csv'}", tmp_path / "out")
    variants = {
        FULL: (),
        "no context": ("fuse.cross_attention=false",),
        "frame level": ("fuse.level=frame",),
        "no self-training": ("self_train.rounds=0",),
        "vote: no prior": ("vote.prior=none",),
    }
    found = {row["title"]: row for row in run_all([case], variants, QUICK)}
    assert contents(tmp_path / "given") == before
    assert "frame level" not in found and len(found) == 4
    full, same = found[FULL]["by_case"][0], {"round 0, unlabelled", "last round, unlabelled"}
    assert all(found["vote: no prior"]["by_case"][0][key] == full[key] for key in same)
    assert found["no self-training"]["by_case"][0]["round 0, unlabelled"] == full["round 0, unlabelled"]
    row = found["no context"]
    assert row["vote, unlabelled"]["change"]["mean"] == pytest.approx(
        row["by_case"][0]["vote, unlabelled"] - full["vote, unlabelled"]
    )
    told = configuration.load(case.folder / "no-context" / "config.yaml")
    quick = {"fuse.epochs": 2, "fuse.seeds": 1, "fuse.width": 16}
    labels = {"fuse.labels": config.fuse.labels, "fuse.sets": config.fuse.sets}
    assert changed(told) == labels | quick | {"fuse.cross_attention": False}
    assert f"{100 * full['vote, unlabelled']:.2f}" in table([*found.values()])


def test_a_link_to_another_run_is_refused(tmp_path):
    from comparison import link

    for name in ("one", "two"):
        (tmp_path / name / "features").mkdir(parents=True)
    link(tmp_path / "own", tmp_path / "one" / "features", tmp_path / "one" / "shards")
    link(tmp_path / "own", tmp_path / "one" / "features")
    with pytest.raises(UserError, match="give another --out"):
        link(tmp_path / "own", tmp_path / "two" / "features")
