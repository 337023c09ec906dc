"""The lineage of a round: every clip of every fold, compact, and read clip by clip."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mer_dist.fusion import pseudo_label_log, pseudo_labels
from mer_dist.report import collect


def chosen_by(limit: list[float], names: int, seed: int) -> pseudo_labels.PseudoLabels:
    probability = np.random.default_rng(seed).dirichlet([1, 1], names)
    usable = np.arange(names) != 3
    return pseudo_labels.take(probability, usable, np.array(limit), None, 0.5)


def test_what_was_selected_is_read_back_clip_by_clip(tmp_path):
    names = [f"clip_{row}" for row in range(40)]
    chosen = [chosen_by([0.6, np.inf], 40, 0), chosen_by([0.5, 0.9], 40, 1)]
    models = ["fold-0/seed-0 fold-0/seed-1", "fold-1/seed-0 fold-1/seed-1"]
    pseudo_label_log.write(tmp_path / "pseudo_labels.parquet", names, ["sad", "happy"], chosen, models)
    for row, name in enumerate(names):
        told = pseudo_label_log.of_clip(tmp_path / "pseudo_labels.parquet", name)
        assert [one["fold"] for one in told] == [0, 1]
        for one, own, voted in zip(told, chosen, models, strict=True):
            label, threshold = own.label[row], own.threshold[own.label[row]]
            assert [one["p_sad"], one["p_happy"]] == pytest.approx(own.probability[row].tolist())
            assert one["pseudo_label"] == ("sad", "happy")[label]
            assert one["selected"] == own.taken[row] and one["models"] == voted
            assert one["reason"] == pseudo_labels.REASONS[own.reason[row]]
            assert one["threshold"] == (None if np.isinf(threshold) else pytest.approx(threshold))
            assert one["weight"] == pytest.approx(own.weight[row])
    assert pseudo_label_log.of_clip(tmp_path / "pseudo_labels.parquet", "clip_40") == []


def test_words_are_stored_once_and_not_for_every_clip_and_fold(tmp_path):
    names = [f"a_rather_long_name_of_a_clip_{row:06d}" for row in range(3000)]
    chosen = [chosen_by([0.6, 0.6], 3000, seed) for seed in range(5)]
    models = [" ".join(f"fold-{fold}/seed-{seed}" for seed in range(3)) for fold in range(5)]
    path = tmp_path / "pseudo_labels.parquet"
    pseudo_label_log.write(path, names, ["sad", "happy"], chosen, models)
    schema = pq.read_schema(path)
    words = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    assert words == ["name", "pseudo_label", "reason", "models"]
    # Two probabilities and a weight of 4 bytes, the number of the name, and little else.
    assert path.stat().st_size < 20 * 5 * 3000


@pytest.mark.slow
def test_a_round_of_the_challenges_own_size_is_read_back(tmp_path):
    """120,000 unlabelled clips in five folds; labels may have dots."""
    count, labels = 120_000, ["angry.1", "happy"]
    names = [f"samplenew3_{row:08d}" for row in range(count)]
    chosen, path = (
        [chosen_by([0.6, 0.6], count, seed) for seed in range(5)],
        tmp_path / "pseudo_labels.parquet",
    )
    pseudo_label_log.write(path, names, labels, chosen, [f"fold-{fold}/seed-0" for fold in range(5)])
    told = pseudo_label_log.of_clip(path, names[-1])
    assert [one["fold"] for one in told] == [0, 1, 2, 3, 4]
    for one, own in zip(told, chosen, strict=True):
        assert [one["p_angry.1"], one["p_happy"]] == pytest.approx(own.probability[-1].tolist())
    assert collect._lent(path) == np.any([own.taken for own in chosen], 0).sum()
