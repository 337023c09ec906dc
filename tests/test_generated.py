"""benchmarks/generated.py: its optimum is the optimum, and what it writes is what it drew."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from mer_dist.core import metrics
from mer_dist.features import store
from mer_dist.fusion.decisions import decide
from mer_dist.storage.run_folder import Run

ROOT = Path(__file__).resolve().parent.parent
COUNT = 20_000

pytestmark = pytest.mark.usefixtures("benchmarks")


@pytest.fixture(scope="module")
def world(benchmarks):
    from generated_data import World

    return World.make(0)


@pytest.fixture(scope="module")
def sample(world):
    from generated_data import UNLABELED_SHARES

    return world.draw(COUNT, UNLABELED_SHARES, 0)


@pytest.fixture(scope="module")
def exact(world, sample):
    from generated_data import UNLABELED_SHARES

    return world.posterior(sample, UNLABELED_SHARES)


def test_a_tenth_of_each_modality_is_missing_and_never_all(sample):
    present = np.stack(list(sample.present.values()), 1)
    # One in a thousand clips would lack everything and is drawn again.
    assert (~present).mean(0) == pytest.approx((0.1 - 0.001) / (1 - 0.001), abs=4 * (0.09 / COUNT) ** 0.5)
    assert present.any(1).all()


def test_the_label_shares_of_both_parts_are_shares_and_differ():
    from generated_data import LABELED_SHARES, MODES, UNLABELED_SHARES

    assert LABELED_SHARES.sum() == pytest.approx(1) and UNLABELED_SHARES.sum() == pytest.approx(1)
    assert np.abs(LABELED_SHARES - UNLABELED_SHARES).sum() > 0.2
    assert all(sum(share for share, _ in modes) == pytest.approx(1) for modes in MODES.values())


def test_exact_probabilities_are_right_as_often_as_they_say(sample, exact):
    hits = np.eye(exact.shape[1])[sample.truth]
    deviation = np.sqrt((exact * (1 - exact)).sum(0)) / len(exact)
    assert (np.abs(hits.mean(0) - exact.mean(0)) < 4 * deviation).all()
    for low in np.arange(0, 1, 0.1):
        rows = (exact >= low) & (exact < low + 0.1)
        error = np.sqrt((exact[rows] * (1 - exact[rows])).sum()) / rows.sum()
        assert rows.sum() > 100 and abs(hits[rows].mean() - exact[rows].mean()) < 4 * error


def test_probabilities_under_the_labelled_shares_are_wrong_for_the_unlabelled(world, sample):
    from generated_data import LABELED_SHARES

    told = world.posterior(sample, LABELED_SHARES).mean(0)
    assert np.abs(told - np.bincount(sample.truth, minlength=6) / COUNT).max() > 0.01


@pytest.mark.parametrize("modality", ["audio", "video", "text"])
def test_without_a_modality_the_probability_is_its_average_over_that_modality(world, modality):
    """Draws of the missing block given the others, by conditioning each mode's Gaussian."""
    from generated_data import COLUMNS, UNLABELED_SHARES

    some = world.draw(50, UNLABELED_SHARES, 7)
    told = world.posterior(_full(some.values).without(modality), UNLABELED_SHARES)
    # A clip to which the missing modality matters: without it the emotion is in doubt.
    doubtful = told.max(1).argmin()
    gone = np.zeros(some.values.shape[1], bool)
    gone[COLUMNS[modality]] = True
    drawn = _conditional(world, some.values[doubtful], gone, UNLABELED_SHARES, 4000)
    p = world.posterior(_full(drawn), UNLABELED_SHARES)
    assert p.std(0).max() > 0.2
    assert (np.abs(p.mean(0) - told[doubtful]) < 4 * p.std(0) / 4000**0.5 + 1e-4).all()


def _full(values):
    from generated_data import WIDTH, Sample

    count = len(values)
    return Sample(
        truth=np.zeros(count, int), values=values, present={name: np.ones(count, bool) for name in WIDTH}
    )


def _conditional(world, values, gone, shares, count):
    from scipy.stats import multivariate_normal

    kept, covariance = ~gone, world.covariance
    log_p = np.array(
        [
            multivariate_normal.logpdf(values[kept], mean[kept], covariance[np.ix_(kept, kept)])
            for mean in world.means
        ]
    ) + np.log(shares[world.emotion] * world.share)
    p = np.exp(log_p - log_p.max())
    random = np.random.default_rng(0)
    modes = random.choice(len(p), count, p=p / p.sum())
    back = covariance[np.ix_(gone, kept)] @ np.linalg.inv(covariance[np.ix_(kept, kept)])
    left = covariance[np.ix_(gone, gone)] - back @ covariance[np.ix_(kept, gone)]
    means = world.means[modes]
    center = means[:, gone] + (values[kept] - means[:, kept]) @ back.T
    drawn = np.tile(values, (count, 1))
    drawn[:, gone] = center + random.multivariate_normal(np.zeros(gone.sum()), left, count)
    return drawn


@pytest.mark.slow
def test_no_classifier_with_many_labels_beats_the_optimum_and_only_a_nonlinear_one_comes_close(
    world, sample, exact
):
    from generated_data import UNLABELED_SHARES
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    taught = world.draw(50_000, UNLABELED_SHARES, 1)
    best = metrics.waf(sample.truth, decide(exact))
    waf = {}
    network = MLPClassifier((64, 64), early_stopping=True, max_iter=30, alpha=1e-3, random_state=0)
    for name, model in (("linear", LogisticRegression(C=0.03, max_iter=300)), ("network", network)):
        model.fit(_flat(taught), taught.truth)
        waf[name] = metrics.waf(sample.truth, decide(model.predict_proba(_flat(sample))))
    assert 0.95 * best < waf["network"] < best
    assert waf["linear"] < 0.93 * best


def _flat(sample):
    absent = np.stack([~part for part in sample.present.values()], 1)
    return np.concatenate([np.where(sample.mask(), sample.values, 0), absent], 1)


@pytest.mark.slow
def test_the_optimum_falls_with_noise_and_further_without_the_modality(world, sample, exact):
    from generated_data import UNLABELED_SHARES

    deviation = world.std(UNLABELED_SHARES)
    columns = sample.mask()
    observed = np.array([sample.values[rows, place].std() for place, rows in enumerate(columns.T)])
    assert deviation == pytest.approx(observed, rel=0.05)
    for modality in sample.present:
        falls = [metrics.waf(sample.truth, decide(exact))]
        for times in (1, 2):
            noisy = sample.with_noise(modality, times * deviation, 0)
            told = world.with_noise(modality, times * deviation).posterior(noisy, UNLABELED_SHARES)
            falls.append(metrics.waf(sample.truth, decide(told)))
            # Whoever does not know of the noise answers worse.
            assert metrics.waf(sample.truth, decide(world.posterior(noisy, UNLABELED_SHARES))) < falls[-1]
        gone = world.posterior(sample.without(modality), UNLABELED_SHARES)
        falls.append(metrics.waf(sample.truth, decide(gone)))
        assert falls == sorted(falls, reverse=True) and falls[0] - falls[-1] > 0.04


@pytest.mark.slow
def test_a_run_gets_no_label_of_an_unlabelled_clip_and_no_missing_modality(tmp_path, monkeypatch):
    import generated

    monkeypatch.setattr(generated, "UNLABELED", 200)
    task = generated.draw(0, 120)
    task = {one.condition: one for one in generated.degraded(task, 0)}["text removed"]
    small = (
        "fuse.width=8",
        "fuse.heads=2",
        "fuse.epochs=1",
        "fuse.seeds=1",
        "self_train.rounds=0",
        "folds.count=2",
    )
    told = {one.title: one for one in generated.fused(task, tmp_path, 0, small)}
    with open(tmp_path / "labels.csv", encoding="utf-8", newline="") as file:
        labels = {row["name"]: row["label"] for row in csv.DictReader(file)}
    assert len(labels) == 320 and sum(map(bool, labels.values())) == 120
    text, audio = (store.load(Run(tmp_path).features(name)) for name in ("text", "audio"))
    assert all(labels[name] for name in text.names) and len(text.names) == task.labeled.present["text"].sum()
    assert len(audio.names) == sum(part.present["audio"].sum() for part in (task.labeled, task.unlabeled))
    assert {"agt", "agt, vote"} <= told.keys()
    assert told["agt"].of_optimum == pytest.approx(told["agt"].waf / generated.optimum(task))
    rows = generated.summary([list(told.values())] * 2)
    assert rows[0]["waf"] == {"mean": told["agt"].waf, "deviation": 0, "by_seed": [told["agt"].waf] * 2}
    assert "text removed" in generated.table(rows).splitlines()[0]
