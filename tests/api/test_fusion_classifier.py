"""The classifier of features: scikit-learn's conventions, honest figures, and nothing heavy to install."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator

import mer_dist as md
from mer_dist.core import metrics

SMALL = {"model": "linear", "rounds": 0, "epochs": 3, "seeds": 1, "folds": 3}
CLASSES = np.array(["calm", "glad", "tense"])


def task(count: int = 240, labeled: int = 90, noise: float = 1.0, seed: int = 0):
    """Three sets of features, the labels, and those that are known."""
    random = np.random.default_rng(seed)
    truth = np.arange(count) % 3
    sets = {
        name: (
            0.7 * random.normal(size=(3, width))[truth] + noise * random.normal(size=(count, width))
        ).astype(np.float32)
        for name, width in (("audio", 12), ("text", 20), ("opensmile", 6))
    }
    sets["text"][5::9] = np.nan
    return sets, truth, np.where(np.arange(count) < labeled, truth, -1)


def classifier(**changes) -> md.FusionClassifier:
    return md.FusionClassifier(**(SMALL | {"modality": {"opensmile": "audio"}} | changes))


@pytest.mark.slow
def test_labels_of_any_kind_come_back_and_figures_are_out_of_fold():
    sets, truth, known = task(noise=2.0)
    named = np.array([CLASSES[own] if own >= 0 else "-1" for own in known], object)
    made = classifier(rounds=1).fit(sets, named)
    assert made.classes_.tolist() == CLASSES.tolist()
    probability = made.predict_proba(sets)
    assert probability.shape == (240, 3) and np.allclose(probability.sum(1), 1)
    assert np.array_equal(made.predict(sets), CLASSES[probability.argmax(1)])
    right = (made.predict(sets)[90:] == CLASSES[truth[90:]]).mean()
    assert right > 0.7
    # Out of fold it is about as good as on the clips without labels, and not as on those it learned from.
    assert made.oof_proba_.shape == (90, 3)
    own = metrics.waf(truth[:90], made.oof_proba_.argmax(1))
    assert made.oof_score_.waf == pytest.approx(own) and abs(own - right) < 0.12
    low, high = made.oof_score_.interval
    assert low < own < high
    assert {"audio alone (audio)", "all sets (logistic regression)"} <= {
        row.title for row in made.oof_scores_
    }
    assert np.array_equal(made.transduction_[:90], named[:90]) and set(made.transduction_[90:]) <= {*CLASSES}


@pytest.mark.slow
def test_an_answer_does_not_depend_on_its_company_nor_on_pickling_or_on_a_copy_of_the_settings():
    sets, _, known = task()
    made = classifier().fit(sets, known)
    together = made.predict_proba(sets)
    for rows in ([3], [5, 100], [239]):
        alone = made.predict_proba({name: values[rows] for name, values in sets.items()})
        assert np.abs(alone - together[rows]).max() < 1e-5
    assert np.array_equal(pickle.loads(pickle.dumps(made)).predict_proba(sets), together)
    assert np.array_equal(clone(made).fit(sets, known).predict_proba(sets), together)
    # A set that is not given is missing.
    assert made.predict_proba({"audio": sets["audio"]}).shape == (240, 3)


@pytest.mark.slow
def test_groups_share_a_fold_so_that_a_voice_is_not_recognised():
    """Each group has one label, and features that tell the group alone."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(24), 5)
    truth = groups % 2
    values = (random.normal(size=(24, 60))[groups] + 0.1 * random.normal(size=(120, 60))).astype(np.float32)
    apart, together = (
        classifier().fit({"audio": values}, truth, groups=own).oof_score_.waf for own in (None, groups)
    )
    assert apart > 0.95 and together < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("empty", [None, "", "nan"])
def test_a_label_that_is_not_there_is_none_in_any_spelling(empty):
    sets, truth, known = task()
    own = [CLASSES[row] if row >= 0 else empty for row in known]
    made = classifier(random_state=None).fit(sets, own)
    assert made.classes_.tolist() == CLASSES.tolist() and len(made.oof_proba_) == 90
    numbers = classifier().fit(sets, [int(row) if row >= 0 else None for row in known])
    assert numbers.classes_.tolist() == [0, 1, 2]


def test_what_cannot_be_learned_from_is_a_value_error_in_a_line():
    sets, _, known = task()
    for change, y, why in (
        ({}, np.full(240, -1), "nothing to tell apart"),
        ({}, np.where(np.arange(240) < 1, 2, known % 2), "there is one of"),
        ({"audio": sets["audio"][:5]}, known, "different numbers of clips"),
        ({"audio": sets["audio"][:, 0]}, known, r"an array \(N, D\)"),
        ({"smile": sets["audio"]}, known, "'smile' is of no known modality; give it: modality="),
    ):
        with pytest.raises(ValueError, match=why):
            classifier().fit(sets | change, y)
    torn = sets["audio"].copy()
    torn[3, 0] = np.nan
    with pytest.raises(ValueError, match=r"X\['audio'\] has rows of which a part is NaN or infinite"):
        classifier().fit(sets | {"audio": torn}, known)
    with pytest.raises(ValueError, match="groups has 3 entries"):
        classifier().fit(sets, known, groups=[1, 2, 3])


@pytest.mark.slow
def test_it_passes_scikit_learns_checks_of_an_estimator():
    """But for the one in which -1 is a class; scikit-learn's own semi-supervised classifiers are spared it, too."""
    told = check_estimator(
        md.FusionClassifier(**SMALL),
        expected_failed_checks={"check_classifiers_classes": "-1 is an unlabelled clip"},
        on_skip=None,
    )
    counts = {
        status: sum(row["status"] == status for row in told) for status in ("passed", "xfail", "failed")
    }
    assert counts["failed"] == 0 and counts["xfail"] == 1 and counts["passed"] > 45


#: What ``mer-dist[train]`` installs beside what fusion needs.
HEAVY = (
    "deepspeed",
    "transformers",
    "accelerate",
    "peft",
    "bitsandbytes",
    "webdataset",
    "av",
    "cv2",
    "sentencepiece",
)
BARE = f"""
import os, signal, sys, threading
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY + ("submitit", "tensorboard", "soundfile")}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Block())
before = dict(os.environ), [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
import mer_dist as md
assert "torch" not in sys.modules and "sklearn" not in sys.modules
import numpy as np
x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
y = np.arange(60) % 2
x[y == 1] += 2
made = md.FusionClassifier(model="agt", rounds=1, epochs=2, seeds=1, folds=2).fit(x, np.where(np.arange(60) < 30, y, -1))
assert (made.predict(x) == y).mean() > 0.9
after = dict(os.environ), [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
assert after[1] == before[1], "signals"
changed = {{name for name in after[0] if before[0].get(name) != after[0][name]}}
assert changed <= {{"OPENCV_IO_MAX_IMAGE_PIXELS", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"}}, changed
assert [one.name for one in threading.enumerate()] == ["MainThread"], threading.enumerate()
print("done")
"""


@pytest.mark.slow
def test_fusion_needs_no_package_of_training_and_leaves_nothing_in_the_process():
    done = subprocess.run(
        [sys.executable, "-c", BARE], cwd=ROOT, check=False, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "done\n", done.stderr[-3000:]


@pytest.mark.slow
def test_without_the_packages_of_training_a_command_says_what_to_install():
    code = BARE.partition("before =")[0] + 'from mer_dist import cli; sys.exit(cli.main(["demo", "x"]))'
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True, timeout=300
    )
    assert (
        done.returncode == 2
        and "is not installed; what starts from clips needs: pip install 'mer-dist[train]'" in done.stderr
    )
