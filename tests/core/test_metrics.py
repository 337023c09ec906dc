import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score

from mer_dist.core import metrics
from mer_dist.core.errors import UserError


@pytest.mark.parametrize("seed", range(20))
def test_waf_is_the_weighted_f1_of_scikit_learn(seed):
    random = np.random.default_rng(seed)
    classes = random.integers(2, 7)
    size = random.integers(1, 200)
    # Some classes are absent from the truth, others are never answered.
    truth = random.choice(random.permutation(classes)[: max(1, classes - 1)], size)
    answer = random.choice(random.permutation(classes)[: max(1, classes - 1)], size)
    wanted = f1_score(truth, answer, average="weighted", zero_division=0)
    assert metrics.waf(truth, answer) == pytest.approx(wanted, abs=1e-12)


def test_waf_of_a_perfect_and_of_a_wrong_answer():
    assert metrics.waf([0, 1, 2], [0, 1, 2]) == 1
    assert metrics.waf([0, 1, 2], [1, 2, 0]) == 0


def test_the_bootstrap_interval_holds_the_figure_and_has_the_expected_width():
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, 400)
    answer = np.where(random.random(400) < 0.9, truth, 1 - truth)
    low, high = metrics.waf_interval(truth, answer)
    assert low < metrics.waf(truth, answer) < high
    # Two balanced classes: WAF is close to accuracy, whose deviation is sqrt(p (1 - p) / n).
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.9 * 0.1 / 400), rel=0.2)
    assert metrics.waf_interval(truth, answer) == (low, high)
    assert metrics.waf_interval(truth, truth) == (1, 1)


def test_the_interval_is_that_of_drawing_clips_one_by_one_with_any_labels():
    random = np.random.default_rng(1)
    truth = random.choice(["angry", "calm", "sad"], 300, p=[0.6, 0.3, 0.1])
    answer = np.where(random.random(300) < 0.7, truth, random.choice(["calm", "sad", "worried"], 300))
    times = random.multinomial(300, np.full(300, 1 / 300), 4000)
    wanted = np.quantile(metrics.weighted_waf(truth, answer, times), [0.025, 0.975])
    assert metrics.waf_interval(truth, answer, draws=4000) == pytest.approx(wanted, abs=0.004)


def test_groups_are_drawn_whole_and_widen_the_interval():
    random = np.random.default_rng(2)
    groups = np.repeat([f"speaker{row}" for row in range(20)], 15)
    truth = random.integers(0, 2, 300)
    # Whole speakers are answered right or at random.
    answer = np.where((random.random(20) < 0.5).repeat(15), truth, random.integers(0, 2, 300))
    low, high = metrics.waf_interval(truth, answer, groups=groups, draws=3000)
    members = [np.flatnonzero(groups == name) for name in np.unique(groups)]
    wafs = []
    for _ in range(3000):
        rows = np.concatenate([members[row] for row in random.integers(0, 20, 20)])
        wafs.append(metrics.waf(truth[rows], answer[rows]))
    assert (low, high) == pytest.approx(np.quantile(wafs, [0.025, 0.975]), abs=0.01)
    alone = metrics.waf_interval(truth, answer)
    assert high - low > 1.3 * (alone[1] - alone[0])
    assert metrics.waf_interval(truth, answer, groups=np.arange(300).astype(str)) == alone


def test_the_interval_of_a_hundred_thousand_clips_takes_no_memory_for_each():
    truth = np.random.default_rng(0).integers(0, 6, 115_595)
    tracemalloc.start()
    low, high = metrics.waf_interval(truth, np.roll(truth, 1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Drawing clips took 16 kB a clip.
    assert 0 < high - low < 0.01 and peak < 200 * len(truth)


def test_rows_of_the_confusion_matrix_are_the_truth():
    truth, answer = [0, 0, 2, 2, 2], [0, 1, 2, 0, 0]
    counts = metrics.confusion(truth, answer, 3)
    assert counts.tolist() == confusion_matrix(truth, answer, labels=[0, 1, 2]).tolist()
    assert counts[2, 0] == 2


def test_a_share_is_recovered_from_the_score_of_a_constant_answer():
    truth = np.repeat(np.arange(4), [50, 30, 15, 5])
    for label, share in enumerate((0.5, 0.3, 0.15, 0.05)):
        scored = metrics.waf(truth, np.full(100, label))
        assert scored == pytest.approx(2 * share**2 / (1 + share))
        assert metrics.share_of_constant(scored) == pytest.approx(share)


LABELS = ["a", "b", "c", "d"]


def test_all_shares_come_back_from_published_scores_and_one_may_be_left_out():
    counts = np.array([1023, 611, 207, 159])
    truth = np.repeat(np.arange(4), counts)
    scores = {
        label: round(100 * metrics.waf(truth, np.full(2000, row)), 2) for row, label in enumerate(LABELS)
    }
    found = metrics.shares_of_constants(scores, LABELS)
    assert found.sum() == pytest.approx(1) and np.abs(found - counts / 2000).max() < 5e-4
    del scores["b"]
    assert np.abs(metrics.shares_of_constants(scores, LABELS) - counts / 2000).max() < 1e-3


@pytest.mark.parametrize(
    "scores, why",
    [
        ({"a": 33.33, "b": 13.85, "c": 3.91, "d": 2.48}, "do not fit together: they mean a 50.0 %"),
        ({"a": 33.33, "b": 13.85, "c": 3.91, "d": 0.08}, "rounding allows"),
        ({"a": 70.0, "b": 50.0, "c": 3.91}, "do not fit together"),
        ({"a": 33.33, "b": 13.85}, "missing: c, d"),
        ({"a": 33.33, "b": 13.85, "x": 3.91}, "unknown: x"),
        ({"a": 0.3333, "b": 0.1385, "c": 0.0391, "d": 0.0048}, "in percent"),
        ({"a": -1.0, "b": 13.85, "c": 3.91, "d": 0.48}, "in percent"),
        ({"a": float("nan"), "b": 13.85, "c": 3.91, "d": 0.48}, "in percent"),
    ],
)
def test_scores_that_cannot_be_those_of_constant_answers_are_refused(scores, why):
    with pytest.raises(UserError, match=why):
        metrics.shares_of_constants(scores, LABELS)


def test_coarser_scores_are_allowed_to_fit_less_well():
    exact = {"a": 33.33, "b": 13.85, "c": 3.91, "d": 0.48}
    metrics.shares_of_constants(exact, LABELS)
    metrics.shares_of_constants({"a": 33.3, "b": 13.8, "c": 3.9, "d": 0.5}, LABELS)
    with pytest.raises(UserError, match="do not fit"):
        metrics.shares_of_constants(exact | {"d": 0.52}, LABELS)
