from collections import Counter

import pytest

from mer_dist import folds
from mer_dist.errors import UserError
from mer_dist.files import read_json, write_json
from mer_dist.settings import FoldConfig

SIX = ("happy", "sad", "sad", "angry", "sad", "happy")
LABELS = {f"clip{row:03d}": SIX[row % 6] for row in range(60)}


def test_every_fold_has_every_class_in_its_share():
    made = folds.make(LABELS, FoldConfig(count=5))
    assert made.keys() == LABELS.keys()
    for fold in range(5):
        held_out = Counter(LABELS[name] for name, its in made.items() if its == fold)
        assert held_out == {"sad": 6, "happy": 4, "angry": 2}


def test_folds_depend_on_the_seed_and_not_on_the_order_of_clips():
    made = folds.make(LABELS, FoldConfig(count=5, seed=7))
    assert folds.make(dict(reversed(LABELS.items())), FoldConfig(count=5, seed=7)) == made
    assert folds.make(LABELS, FoldConfig(count=5, seed=8)) != made


def test_the_seed_gives_these_folds_on_every_machine():
    """The figure: a run of another day must find its adapters' folds again."""
    made = folds.make(LABELS, FoldConfig(count=3, seed=1))
    assert [made[f"clip{row:03d}"] for row in range(12)] == [0, 2, 2, 1, 1, 2, 0, 1, 0, 0, 0, 1]


def test_clips_of_one_group_share_a_fold():
    labels = {f"film{row // 4:02d}_{row}": ["happy", "sad"][row % 2] for row in range(80)}
    made = folds.make(labels, FoldConfig(count=4, group=r"^(film\d+)_"))
    homes = {}
    for name, fold in made.items():
        homes.setdefault(name.split("_")[0], set()).add(fold)
    assert all(len(home) == 1 for home in homes.values())
    assert set(made.values()) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("labels", "group", "words"),
    [
        ({"a": "sad", "b": "sad", "c": "happy"}, "", "these labels have fewer clips"),
        ({}, "", "fewer clips"),
        ({"f1_a": "sad", "f1_b": "sad", "f1_c": "sad"}, r"^(f\d)_", "1 groups, fewer than"),
        ({"x": "sad", "y": "sad", "z": "sad"}, r"^(f\d)_", "does not match the clip name 'x'"),
    ],
)
def test_too_few_clips_or_groups_are_refused(labels, group, words):
    with pytest.raises(UserError, match=words):
        folds.make(labels, FoldConfig(count=3, group=group))


def test_saved_folds_are_kept_until_labels_or_settings_change(tmp_path):
    path = tmp_path / "folds.json"
    made = folds.load_or_make(path, LABELS, FoldConfig(count=5))
    saved = read_json(path)
    saved["folds"]["clip000"] = 99
    write_json(path, saved)
    assert folds.load_or_make(path, LABELS, FoldConfig(count=5))["clip000"] == 99
    assert folds.load_or_make(path, LABELS, FoldConfig(count=5, seed=1)) != made
    assert folds.load_or_make(path, LABELS, FoldConfig(count=5)) == made
    relabelled = {**LABELS, "clip000": "sad"}
    assert folds.load_or_make(path, relabelled, FoldConfig(count=5)) == folds.make(
        relabelled, FoldConfig(count=5)
    )


def test_an_unreadable_fold_file_is_made_again(tmp_path):
    path = tmp_path / "folds.json"
    for torn in ('{"folds":', "[]", "{}", "3"):
        path.write_text(torn)
        assert folds.load_or_make(path, LABELS, FoldConfig(count=5)) == folds.make(
            LABELS, FoldConfig(count=5)
        )
