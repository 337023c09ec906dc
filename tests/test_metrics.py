import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score

from mer_dist import metrics


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


def test_rows_of_the_confusion_matrix_are_the_truth():
    truth, answer = [0, 0, 2, 2, 2], [0, 1, 2, 0, 0]
    counts = metrics.confusion(truth, answer, 3)
    assert counts.tolist() == confusion_matrix(truth, answer, labels=[0, 1, 2]).tolist()
    assert counts[2, 0] == 2
