"""Clips and features joined by name, and the guard against extractor copies that saw a label."""

from __future__ import annotations

import fusion_run
import numpy as np
import pytest

from mer_dist.config.section import with_values
from mer_dist.core.errors import UserError
from mer_dist.features import join
from mer_dist.features import store as features
from mer_dist.fusion.linear_probe import linear_probe
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run

LABELED, UNLABELED, WIDTH = 60, 20, 6
FOLDS = 3


@pytest.fixture
def run(tmp_path) -> Run:
    """Three copies and ``all`` of one extractor: each bends the same vectors in its own way."""
    run, random = Run(tmp_path / "run"), np.random.default_rng(0)
    names, truth = fusion_run.names(LABELED + UNLABELED), np.arange(LABELED + UNLABELED) % 3
    values = random.normal(size=(len(names), WIDTH)) + 2 * np.eye(WIDTH)[truth]
    for part in (0, 1, 2, None):
        rows = [row for row in range(LABELED) if row % FOLDS == part]
        rows += range(LABELED, LABELED + (UNLABELED if part is None else 8))
        bent = values[rows] * random.uniform(0.5, 4, WIDTH) + random.normal(0, 5, WIDTH)
        write_copy(run, part, [names[row] for row in rows], bent)
    return run


def write_copy(run: Run, copy: int | None, names: list[str], values: np.ndarray, **facts) -> None:
    name = "all" if copy is None else f"fold-{copy}"
    facts = {"variant": name, "held_out_fold": copy} | facts
    fusion_run.write_set(run, f"clip@{name}", "video", names, values, **facts)


def fold_of() -> dict[str, int]:
    return {name: row % FOLDS for row, name in enumerate(fusion_run.names(LABELED))}


def clips_of(count: int = LABELED) -> join.Clips:
    """Labelled clips only."""
    return join.Clips(
        labels=fusion_run.LABELS,
        names=fusion_run.names(count),
        truth=np.random.default_rng(1).integers(0, 3, count),
        fold=np.arange(count) % FOLDS,
        folds=FOLDS,
    )


def test_the_copies_become_one_space_in_which_every_clip_has_one_row(run):
    made = join.tuned(run, "clip", fold_of())
    assert sorted(made.names) == fusion_run.names(LABELED + UNLABELED)
    # The same anchors, bent in four ways, are the same again: here they were bent linearly.
    anchors = set(fusion_run.names(LABELED + 8)[LABELED:])
    spaces = []
    for part in ("fold-0", "fold-1", "fold-2", "all"):
        own = features.load(run.features(f"clip@{part}")).only(anchors).utterance
        spaces.append((own - own.mean(0)) / own.std(0))
    joined_anchors = made.only(anchors).utterance
    assert all(np.allclose(space, joined_anchors, atol=1e-4) for space in spaces)
    truth = np.arange(LABELED + UNLABELED) % 3
    of_class = [
        made.utterances(fusion_run.names(LABELED))[0][truth[:LABELED] == own].mean(0).argmax()
        for own in range(3)
    ]
    assert of_class == [0, 1, 2]


def test_without_anchors_the_copies_own_moments_are_used(run):
    for part in range(FOLDS):
        folder = run.features(f"clip@fold-{part}")
        own = features.load(folder).only(set(fold_of()))
        features.write_shard(folder / "00000.safetensors", own)
    made = join.tuned(run, "clip", fold_of())
    labeled = made.only(set(fold_of())).utterance
    assert np.abs(labeled.mean(0)).max() < 1e-3 and len(made.names) == LABELED + UNLABELED


def test_a_copy_that_was_trained_on_the_clips_it_offers_is_refused(run):
    clips = clips_of()
    # A copy that knew the labels would write them into its features, and they would be found.
    leak = np.eye(3)[clips.truth]
    assert (
        linear_probe([leak], [np.ones(LABELED, bool)], clips).oof.probability.argmax(1) == clips.truth
    ).all()
    own = [row for row in range(LABELED) if row % FOLDS == 0]
    stolen = [row for row in range(LABELED) if row % FOLDS == 1][:1]
    rows = own + stolen
    values = np.pad(leak[rows], ((0, 0), (0, WIDTH - 3)))
    write_copy(run, 0, [clips.names[row] for row in rows], values)
    with pytest.raises(UserError, match=f"{clips.names[stolen[0]]}.*leak their labels"):
        join.tuned(run, "clip", clips.fold_of)


def test_the_copy_trained_on_all_labels_may_not_offer_a_labelled_clip(run):
    names = fusion_run.names(LABELED + UNLABELED)
    write_copy(run, None, names[LABELED - 1 :], np.ones((UNLABELED + 1, WIDTH)))
    with pytest.raises(UserError, match=names[LABELED - 1]):
        join.tuned(run, "clip", fold_of())


@pytest.mark.parametrize("facts", [{"held_out_fold": 1}, {"held_out_fold": None}, {"variant": "all"}])
def test_a_copy_that_says_it_left_out_another_fold_is_refused(run, facts):
    names = [name for name, fold in fold_of().items() if fold == 0]
    write_copy(run, 0, names, np.ones((len(names), WIDTH)), **facts)
    with pytest.raises(UserError, match="'fold-0' is needed"):
        join.tuned(run, "clip", fold_of())


def test_other_folds_than_those_of_the_fine_tuning_are_refused(run):
    moved = {name: (row + 1) % FOLDS for row, name in enumerate(fold_of())}
    with pytest.raises(UserError, match="leak their labels"):
        join.tuned(run, "clip", moved)


def test_vectors_that_are_no_numbers_become_missing_and_are_named(run):
    names = fusion_run.names(LABELED)
    values = np.ones((LABELED, 2), np.float32)
    values[3, 1], values[5, 0] = np.nan, np.inf
    fusion_run.write_set(run, "voice", "audio", names, values)
    found, problems = join.read_set(run, "voice", clips_of())
    assert {names[3], names[5]}.isdisjoint(found.names) and len(found.names) == LABELED - 2
    assert sorted((row.name, row.lost) for row in problems) == [(names[3], "audio"), (names[5], "audio")]
    assert "features voice:" in problems[0].reason


def test_a_set_without_a_single_vector_of_numbers_says_so_and_not_that_labels_are_few(run):
    values = np.full((LABELED, 2), np.nan, np.float32)
    fusion_run.write_set(run, "voice", "audio", fusion_run.names(LABELED), values)
    with pytest.raises(UserError, match=f"features voice: none of the {LABELED} clips .*run extract again"):
        join.read_set(run, "voice", clips_of())


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e12])
def test_a_clip_one_of_whose_frames_is_broken_becomes_missing_alone_and_is_named(run, bad):
    clips, random = clips_of(), np.random.default_rng(0)
    lengths = np.arange(LABELED) % 4  # every fourth clip has no frame
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    frame = random.normal(size=(offsets[-1], 4)).astype(np.float32)
    # The last frame of clip 2 and the first of clip 5: the ends of what is theirs.
    frame[offsets[3] - 1, 1] = frame[offsets[5], 0] = bad
    shard = features.FeatureSet(
        modality="audio",
        names=clips.names,
        offsets=offsets,
        frame=frame,
        utterance=random.normal(size=(LABELED, 4)).astype(np.float32),
    )
    store = run.features("voice")
    features.write_shard(store / "00000.safetensors", shard, "1")
    features.describe(store, modality="audio", width=4)
    files.write_marker(store, "1", shards=[0])
    broken = {clips.names[2], clips.names[5]}
    found, problems = join.read_set(run, "voice", clips, frames=True)
    assert {(row.name, row.lost) for row in problems} == {(name, "audio") for name in broken}
    assert len(problems) == 2 and "features voice:" in problems[0].reason
    assert set(found.names) == set(clips.names) - broken and np.isfinite(found.frame).all()
    tokens, there = found.tokens(clips.names, 3)
    assert there.sum(1).tolist() == [0 if row in (2, 5) else most for row, most in enumerate(lengths)]
    assert np.abs(tokens[there]).max() < 10
    # Whoever fuses utterance vectors has no use for the frames and loses nothing.
    assert len(join.read_set(run, "voice", clips)[0].names) == LABELED


def test_a_vector_of_another_order_of_size_becomes_missing_and_is_named(run):
    names, values = fusion_run.names(LABELED), np.random.default_rng(0).normal(size=(LABELED, 4))
    values[3, 1], values[5] = 1e12, 100
    fusion_run.write_set(run, "voice", "audio", names, values)
    found, problems = join.read_set(run, "voice", clips_of())
    assert [problem.name for problem in problems] == [names[3]]
    assert names[3] not in found.names and names[5] in found.names


def test_a_set_of_other_clips_is_refused(run):
    fusion_run.write_set(run, "voice", "audio", ["x", "y"], np.ones((2, 2)))
    with pytest.raises(UserError, match="none of its 2 clips .* it has 'x', and this run 'clip_0000'"):
        join.read_set(run, "voice", clips_of())


def test_an_unusable_row_of_the_label_file_costs_its_clip_and_is_named(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("name,label,split\na,happy,\nb,,\nc,joyful,\nd,angry,unlabeled\ne,angry,test\n")
    found, problems = join.read_labels(path, fusion_run.LABELS)
    assert found == {"a": "happy", "b": None, "d": None}
    assert {row.name: row.lost for row in problems} == {"c": "clip", "e": "clip"}
    assert all("line" in row.reason for row in problems)


def test_further_columns_of_a_label_file_are_told_and_not_used(tmp_path, caplog):
    path = tmp_path / "labels.csv"
    path.write_text("name,label,set,valence,split\na,sad,test,0.5,\nb,sad,train,0.1,unlabeled\n")
    with caplog.at_level("INFO"):
        assert join.read_labels(path, ["sad"]) == ({"a": "sad", "b": None}, [])
    assert f"{path}: columns that are not used: 'set', 'valence'" in caplog.messages


def test_a_label_file_may_name_feature_files(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("name,label\na.npy,happy\nb.NPY,angry\n")
    assert join.read_labels(path, fusion_run.LABELS)[0] == {"a": "happy", "b": "angry"}


def test_labelled_clips_of_one_label_are_refused_in_plain_words(tmp_path):
    config, _ = fusion_run.make(tmp_path)
    path = tmp_path / "one.csv"
    path.write_text("name,label\n" + "".join(f"{name},happy\n" for name in fusion_run.names(9)))
    config = with_values(config, **{"fuse.labels": str(path)})
    with pytest.raises(UserError, match="every labelled clip is happy, and nothing can be learned from one"):
        join.read_clips(config, Run(config.run.folder))


def test_the_fingerprint_of_a_set_follows_each_of_its_copies(run):
    before = join.set_fingerprint(run, "clip@tuned", FOLDS)
    assert join.set_fingerprint(run, "clip@tuned", FOLDS) == before
    names = [name for name, fold in fold_of().items() if fold == 2]
    fusion_run.write_set(
        run, "clip@fold-2", "video", names, np.ones((len(names), WIDTH)), "2", part="fold-2", held_out_fold=2
    )
    assert join.set_fingerprint(run, "clip@tuned", FOLDS) != before


def test_the_label_file_may_say_discrete_as_the_truth_of_score_does(tmp_path):
    path = tmp_path / "labels.csv"
    first, second = fusion_run.LABELS[:2]
    path.write_text(f"Name;Discrete;Valence\na;{first.upper()};1\nb.mp4; {second};0\nc;;\n")
    assert join.read_labels(path, fusion_run.LABELS) == ({"a": first, "b": second, "c": None}, [])
    for header in ("name,discrete,label", "name,emotion"):
        path.write_text(f"{header}\n{'a' + ',x' * header.count(',')}\n")
        with pytest.raises(UserError, match="needs a column label, or discrete, and not both; it has: "):
            join.read_labels(path, fusion_run.LABELS)


def test_the_label_file_of_the_baseline_is_taken_with_its_train_corpus_labelled(tmp_path):
    first, second = fusion_run.LABELS[:2]
    path = tmp_path / "label-6way.npz"
    train = {
        "ep01.s03": {"emo": first, "val": 1.0},
        "-x07": {"emo": second, "val": 0.0},
        "c": {"emo": "bored", "val": 0.0},
        "cafe\u0301": {"emo": first},
    }
    # The baseline's unlabelled clips carry a label that nobody gave.
    np.savez(path, train_corpus=train, test1_corpus={"d": {"emo": first, "val": -10}})
    found, problems = join.read_labels(path, fusion_run.LABELS)
    assert found == {"ep01.s03": first, "-x07": second, "caf\u00e9": first, "d": None}
    (problem,) = problems
    assert (problem.name, problem.lost) == ("c", "clip")
    assert problem.reason.startswith("label-6way.npz: label 'bored' is not in corpus.labels: ")
    np.savez(path, train_corpus={"a": {"emo": first}}, test1_corpus={"a.mp4": {"emo": first}})
    with pytest.raises(UserError, match="'a' occurs twice: label-6way.npz, train_corpus and .* test1_corpus"):
        join.read_labels(path, fusion_run.LABELS)
    np.savez(path, test1_corpus={"a": {"emo": first}})
    with pytest.raises(UserError, match="has no train_corpus.* it has: test1_corpus"):
        join.read_labels(path, fusion_run.LABELS)


@pytest.mark.slow
def test_numbered_labels_of_a_published_file_are_read_by_their_numbers_or_told_of(shared):
    path = shared / "data" / "meld" / "label.npz"
    found, problems = join.read_labels(path, [str(number) for number in range(7)])
    assert problems == [] and len(found) == 13_708
    assert sum(label is None for label in found.values()) == 1109 + 2610
    found, problems = join.read_labels(path, fusion_run.LABELS)
    assert len(problems) == 9989 and set(found.values()) == {None}
    assert "numbers can be labels, too: name them there" in problems[0].reason


def test_a_label_that_models_never_see_is_told_with_fold_and_group(tmp_path, caplog):
    rows = [
        f"g{row // 12}_{row:02d},{'happy' if row < 12 else ('neutral', 'angry')[row % 2]}\n"
        for row in range(60)
    ]
    files.write_text(tmp_path / "labels.csv", "name,label\n" + "".join(rows) + "u_0,\n")
    config = fusion_run.configure(tmp_path, overrides=("folds.group='^([gu][0-9]*)_'",))
    for _ in range(2):
        caplog.clear()
        clips, _ = join.read_clips(config, Run(config.run.folder))
        (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        fold = clips.fold[clips.names.index("g0_00")]
        assert f"all 12 clips labelled happy are in fold {fold} (group g0)" in line
