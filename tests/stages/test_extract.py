"""Extraction over real shards: any number of processes, killed and changed in between."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_job
import soundfile
from imported import heavy
from safetensors.torch import load_file, save_file

from mer_dist.cli import main
from mer_dist.config.config import load
from mer_dist.core.errors import UserError
from mer_dist.crossfit import adapters
from mer_dist.features import store
from mer_dist.models.family import FAMILIES
from mer_dist.models.feeding import clip_embeddings
from mer_dist.models.hubert import HubertExtractor
from mer_dist.processes.ancestry import Starter
from mer_dist.shards import shard_index
from mer_dist.shards.reader import Reader
from mer_dist.stages.extract import extract, planned
from mer_dist.stages.finetune import finetune
from mer_dist.stages.fuse import fuse
from mer_dist.stages.shard import shard
from mer_dist.storage import files, quarantine
from mer_dist.storage.files import digest
from mer_dist.storage.lock import held
from mer_dist.storage.run_folder import Run

FROZEN = ("extractors.clip.finetune=null", "extractors.baichuan.finetune=null")


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    path = small_job.make(tmp_path_factory.mktemp("job"))
    config = load(path, FROZEN)
    shard(config)
    extract(config)
    return path


def run_of(job: Path) -> Run:
    return Run(load(job).run.folder)


def hashes(run: Run) -> dict[str, str]:
    files = sorted((run.folder / "features").rglob("*.safetensors"))
    return {str(path.relative_to(run.folder)): digest(path) for path in files}


@pytest.mark.slow
def test_sets_of_one_model_that_differ_in_their_layers_need_one_pass(job, tmp_path, monkeypatch):
    passes = []
    text = job.read_text()
    head = text[: text.index("extractors:")].replace(str(run_of(job).folder), str(tmp_path / "run"))
    tail = text[text.index("extract: ") :]
    hubert = f"{{family: hubert, path: {job.parent}/models/hubert"
    each = {"low": ", layers: [0, 1]}", "top": ", layers: [-1]}", "usual": "}", "again": "}"}
    together = "".join(f"  {name}: {hubert}{own}\n" for name, own in each.items())
    files.write_text(tmp_path / "together.yaml", f"{head}extractors:\n{together}{tail}")
    shutil.copytree(run_of(job).shards, tmp_path / "run" / "shards")
    monkeypatch.setattr(HubertExtractor, "embed", counting(HubertExtractor.embed, passes))
    extract(load(tmp_path / "together.yaml"))
    run, clips = Run(tmp_path / "run"), small_job.LABELED + small_job.UNLABELED
    # On a CPU each clip is a pass of its own; the set that is another once more needs its own.
    assert len(passes) == 2 * clips
    usual = store.load(run_of(job).features("hubert")).utterance
    assert np.array_equal(store.load(run.features("usual")).utterance, usual)
    assert np.array_equal(store.load(run.features("again")).utterance, usual)
    low, top = (store.load(run.features(name)).utterance for name in ("low", "top"))
    assert low.shape == top.shape == usual.shape and not np.allclose(low, top)
    # Only the lost shard of one of them is computed again.
    lost = min(run.features("low").glob("*.safetensors"))
    kept = {path: path.stat().st_mtime_ns for path in run.features("top").glob("*.safetensors")}
    before = lost.read_bytes()
    lost.unlink()
    extract(load(tmp_path / "together.yaml"))
    assert lost.read_bytes() == before and {path: path.stat().st_mtime_ns for path in kept} == kept
    # Alone it is what it was beside the others.
    alone = load(tmp_path / "together.yaml")
    shutil.rmtree(run.features("low"))
    extract(replace(alone, extractors={"low": alone.extractors["low"]}))
    assert lost.read_bytes() == before


@pytest.mark.slow
def test_a_setting_that_a_model_cannot_follow_is_refused_before_the_first_set_is_computed(job, tmp_path):
    text = job.read_text()
    head = text[: text.index("extractors:")].replace(str(run_of(job).folder), str(tmp_path / "run"))
    models = f"  clip: {{family: clip, path: {job.parent}/models/clip}}\n"
    models += f"  voice: {{family: hubert, path: {job.parent}/models/hubert, layers: [99]}}\n"
    files.write_text(tmp_path / "own.yaml", f"{head}extractors:\n{models}")
    shutil.copytree(run_of(job).shards, tmp_path / "run" / "shards")
    with pytest.raises(UserError, match=r"extractors\.voice\.layers names 99; .* has the hidden states 0 to"):
        extract(load(tmp_path / "own.yaml"))
    assert not Run(tmp_path / "run").features("clip").exists()


def counting(method, calls: list):
    def counted(*given, **named):
        calls.append(method)
        return method(*given, **named)

    return counted


@pytest.mark.slow
def test_every_clip_has_features_of_every_modality(job):
    run = run_of(job)
    names = {row.name for row in shard_index.read(run.shards)}
    for name, width in (("clip", 24), ("hubert", 32), ("baichuan", 32)):
        found = store.load(run.features(name))
        assert set(found.names) == names and not found.missing
        assert found.width == width and np.isfinite(found.utterance).all()
        assert store.description(run.features(name))["held_out_fold"] is None


@pytest.mark.slow
def test_frame_level_rows_average_to_the_utterance_vector(job):
    found = store.load(run_of(job).features("hubert"))
    for row in range(len(found.names)):
        own = found.frame[found.offsets[row] : found.offsets[row + 1]]
        assert np.allclose(own.mean(0), found.utterance[row], atol=1e-4)


@pytest.mark.slow
def test_features_stay_with_their_clip_whatever_the_batch(job):
    """Clips are batched by length; a row joined by position would land on another name."""
    from mer_dist.models.classifier import load_extractor

    config = load(job)
    run = run_of(job)
    loaded = load_extractor(config.extractors["hubert"])
    reader = Reader(run.shards)
    found = store.load(run.features("hubert"))
    for row in reader.rows[::7]:
        expected = loaded(**loaded.collate_clips([loaded.prepare(reader.read(row))])).detach().numpy()[0]
        (position,) = [place for place, name in enumerate(found.names) if name == row.name]
        assert np.allclose(found.utterance[position], expected, atol=1e-4)


@pytest.mark.processes
def test_two_processes_give_the_same_bytes_and_redo_only_what_is_missing(job):
    run = run_of(job)
    before = hashes(run)
    lost = [run.features("hubert") / "00001.safetensors", run.features("clip") / "00000.safetensors"]
    kept = run.features("hubert") / "00000.safetensors"
    untouched = kept.stat().st_mtime_ns
    for path in lost:
        path.unlink()
    done = small_job.mer_dist("extract", job, *FROZEN, processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert small_job.mer_dist("status", run.folder, "extract").returncode == 0
    assert hashes(run) == before
    assert kept.stat().st_mtime_ns == untouched


@pytest.mark.slow
def test_a_torn_feature_file_is_made_again(job):
    run = run_of(job)
    before = hashes(run)
    path = run.features("baichuan") / "00002.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    extract(load(job, FROZEN))
    assert hashes(run) == before


@pytest.mark.slow
def test_a_changed_model_makes_its_own_features_again_and_no_others(job, tmp_path):
    run = run_of(job)
    before = hashes(run)
    other = shutil.copytree(load(job).extractors["hubert"].path, tmp_path / "hubert")
    works = planned(load(job, [*FROZEN, f"extractors.hubert.path={other}", "extractors.hubert.window=5.0"]))
    missing = {work.set_name: len(work.missing()) for work in works}
    assert missing["clip"] == missing["baichuan"] == 0 and missing["hubert"] == len(works[0].shards)
    assert hashes(run) == before


@pytest.mark.slow
def test_weights_written_later_make_their_own_features_again_and_no_others(job):
    """Of the same size, so the time alone tells."""
    run, config = run_of(job), load(job, FROZEN)
    before, weights = hashes(run), Path(config.extractors["hubert"].path) / "model.safetensors"
    told = store.load(run.features("hubert")).utterance
    content, times = weights.read_bytes(), weights.stat()
    try:
        with open(weights, "r+b") as file:
            middle = len(content) // 8 * 4 + 3  # a number's highest byte, whose lowest bit is of the exponent
            file.seek(middle)
            file.write(bytes([content[middle] ^ 1]))
        assert weights.stat().st_size == len(content)
        missing = {work.set_name: work.missing() for work in planned(config)}
        shards = sorted({row.shard for row in shard_index.read(run.shards)})
        assert missing == {"clip": [], "hubert": shards, "baichuan": []}
        extract(config)
        # In place: what was made of the other weights is gone, and nothing else was touched.
        after = hashes(run)
        assert {path.split("/")[1] for path in before if before[path] != after[path]} == {"hubert"}
        assert not np.array_equal(store.load(run.features("hubert")).utterance, told)
        assert not any(work.missing() for work in planned(config))
    finally:
        weights.write_bytes(content)
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    extract(config)
    assert hashes(run) == before


@pytest.mark.slow
def test_a_shard_is_on_disk_before_the_next_one_is_computed(job, monkeypatch):
    """So a kill costs a rank no more than one."""
    config = load(job, FROZEN)
    seen = []

    def spied(extractor, reader, shards, compute):
        for shard_, name, result in clip_embeddings(extractor, reader, shards, compute):
            seen.append(shard_)
            assert all(work.file(done).exists() for done in shards if done in seen and done != shard_)
            yield shard_, name, result

    work = next(work for work in planned(config) if work.set_name == "baichuan")
    for path in work.folder.glob("*.safetensors"):
        path.unlink()
    monkeypatch.setattr("mer_dist.models.feeding.clip_embeddings", spied)
    extract(config)
    assert sorted(set(seen)) == sorted(work.shards) and len(work.shards) > 1


def fingerprints(job: Path, *overrides: str) -> dict[str, dict[int, str]]:
    """set -> shard -> what its features are made from, fine-tuned copies included."""
    config = load(job, overrides)
    for copy in adapters.planned(config):
        files.write_marker(copy.folder, copy.fingerprint)
    return {work.set_name: work.fingerprint for work in planned(config)}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [extract, finetune, fuse])
def test_shards_of_other_settings_are_refused_by_every_stage_that_would_use_them(job, stage):
    """Else what comes out would pass for what these settings make; finished work is no exception."""
    with pytest.raises(UserError, match="cut with other settings.*; run shard"):
        stage(load(job, ["shard.frames=2"]))


@pytest.mark.slow
def test_stages_that_are_done_say_so_without_torch(job):
    config = load(job)
    for copy in adapters.planned(config):
        files.write_marker(copy.folder, copy.fingerprint)
    assert heavy("extract", job, *FROZEN) == set()
    assert heavy("finetune", job) == set()


def changed(before: dict[str, dict[int, str]], after: dict[str, dict[int, str]]) -> dict[str, set[int]]:
    """set -> shards whose features are made again."""
    return {
        name: {shard for shard, fingerprint in own.items() if before[name].get(shard) != fingerprint}
        for name, own in after.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "own"),
    [
        ("extractors.hubert.window=5.0", {"hubert"}),
        ("extractors.clip.frames=2", {"clip", "clip@"}),
        ("extractors.baichuan.finetune.epochs=3", {"baichuan@"}),
        ("extractors.baichuan.batch_budget=64", {"baichuan", "baichuan@"}),
        ("run.threads=2", {"clip", "clip@", "hubert", "baichuan", "baichuan@"}),
    ],
)
def test_a_changed_setting_makes_only_the_features_again_that_it_decides(job, override, own):
    again = changed(fingerprints(job), fingerprints(job, override))
    assert {name[: name.find("@") + 1] or name for name, shards in again.items() if shards} == own


@pytest.mark.slow
def test_a_changed_batch_rule_makes_all_features_again(job, monkeypatch):
    before = fingerprints(job)
    monkeypatch.setitem(FAMILIES._entries, "clip", replace(FAMILIES["clip"], budgets=(9, 256)))
    again = changed(before, fingerprints(job))
    assert {name for name, shards in again.items() if shards} == {
        "clip",
        "clip@fold-0",
        "clip@fold-1",
        "clip@all",
    }
    monkeypatch.setattr("mer_dist.stages.extract.PASSES_OF_A_CHUNK", 9)
    assert all(changed(before, fingerprints(job)).values())


@pytest.mark.slow
def test_a_clip_that_is_added_costs_its_own_shard(tmp_path):
    """An unlabelled one: a labelled one changes the folds, and what is fine-tuned with them."""
    job = small_job.make(tmp_path)
    shard(load(job))
    before = fingerprints(job)
    videos = tmp_path / "corpus" / "video-unlabeled-with-test2noise"
    shutil.copy(videos / "u000.mp4", videos / "aaa.mp4")
    shard(load(job))
    again = changed(before, fingerprints(job))
    rows = shard_index.read(run_of(job).shards)
    (own,) = {row.shard for row in rows if row.name == "aaa"}
    assert own == max(row.shard for row in rows)
    assert all(again[name] == {own} for name in ("clip", "hubert", "baichuan", "clip@all", "baichuan@all"))
    # It may take the place of one anchor of the copies that leave a fold out, and of no more.
    for name in ("clip@fold-0", "clip@fold-1"):
        assert len(again[name] - {own}) <= 1


@pytest.mark.slow
def test_audio_too_short_for_the_model_is_masked_and_quarantined(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, samples in (("long", 8_000), ("short", 300)):
        wave = np.random.default_rng(0).normal(0, 0.1, samples)
        soundfile.write(corpus / f"{name}.wav", wave, 16_000)
    lines = ["name,video,audio,transcript,label,split"]
    lines += [f"{name},,{name}.wav,你好,happy,labeled" for name in ("long", "short")]
    (corpus / "clips.csv").write_text("\n".join(lines), encoding="utf-8")
    job = small_job.make(tmp_path)
    options = [
        *FROZEN,
        "corpus.format=manifest",
        f"corpus.path={corpus}/clips.csv",
        f"run.folder={tmp_path}/other",
    ]
    config = load(job, options)
    shard(config)
    extract(config)
    run = Run(config.run.folder)
    found = store.load(run.features("hubert"))
    assert found.names == ["long"] and "300 audio samples" in found.missing["short"]
    values, valid = found.utterances(["short", "long"])
    assert valid.tolist() == [False, True] and values[1].any()
    rows = [(row.name, row.lost) for row in quarantine.read(run.quarantine) if row.stage == "extract"]
    assert rows == [("short", "audio")]
    # Neither clip has video: no row of any kind stands in for it.
    assert store.load(run.features("clip")).names == []


def with_clip_alone(job: Path, tmp_path: Path, factor: float = 1.0) -> Path:
    """The shards of the job in a run folder of its own, and CLIP with its last weights times ``factor``."""
    shutil.copytree(run_of(job).shards, tmp_path / "run" / "shards")
    model = shutil.copytree(load(job).extractors["clip"].path, tmp_path / "clip")
    weights = load_file(model / "model.safetensors")
    weights["visual_projection.weight"] *= factor
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    path = tmp_path / "job.yaml"
    path.write_text(
        f"run: {{folder: {tmp_path}/run}}\ncorpus: {{path: {tmp_path}/none}}\n"
        "shard: {clips: 9, frames: 4, image_size: 32, faces: none}\nfolds: {count: 2}\n"
        f"extractors: {{clip: {{family: clip, path: {model}}}}}\n"
    )
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "wrong", "right", "factor"),
    [
        ("extractors.clip.precision", "fp16", "fp32", 3e7),
        ("extract.storage", "fp16", "fp32", 3e7),
        ("extract.storage", "fp16", "fp32", 1e-9),
    ],
)
def test_a_setting_that_makes_vectors_no_numbers_is_told_at_the_first_shard(
    job, tmp_path, capsys, key, wrong, right, factor
):
    path = with_clip_alone(job, tmp_path, factor)
    folder = run_of(path).features("clip")
    for _ in range(2):
        # A second start does not take anything for done either.
        assert main(["extract", str(path), f"{key}={wrong}"]) == 2
        told = capsys.readouterr().err
        assert "features clip: 9 of 9 clips have none" in told and key in told and right in told
        assert not list(folder.glob("*.safetensors")) and not files.read_marker(folder)
    assert main(["extract", str(path), f"{key}={right}"]) == 0
    found = store.load(folder)
    assert len(found.names) == small_job.LABELED + small_job.UNLABELED and np.isfinite(found.utterance).all()
    assert np.isfinite(found.frame).all() and found.utterance.any(1).all()


@pytest.mark.slow
def test_a_single_clip_without_finite_vectors_is_left_out_with_what_to_set(
    job, tmp_path, monkeypatch, capsys
):
    def spoiled(*arguments):
        for shard_, name, embeddings in clip_embeddings(*arguments):
            yield shard_, name, embeddings * np.float32(np.inf) if name == "u000" else embeddings

    monkeypatch.setattr("mer_dist.models.feeding.clip_embeddings", spoiled)
    path = with_clip_alone(job, tmp_path)
    assert main(["extract", str(path), "extractors.clip.precision=bf16"]) == 3
    assert "u000: its vectors came out of the model as NaN" in capsys.readouterr().err
    run = run_of(path)
    (row,) = [row for row in quarantine.read(run.quarantine) if row.stage == "extract"]
    assert (row.name, row.lost) == ("u000", "video") and "extractors.clip.precision to fp32" in row.reason
    found = store.load(run.features("clip"))
    assert "u000" not in found.names and "u000" in found.missing and np.isfinite(found.utterance).all()


@pytest.mark.slow
def test_a_run_that_is_moved_keeps_the_precision_that_its_features_began_with(
    job, tmp_path, monkeypatch, capsys
):
    """``auto`` is settled by what is there, so no set is a mixture and moving costs nothing."""
    path = with_clip_alone(job, tmp_path)
    run = run_of(path)
    folder = run.features("clip")

    def on_a_machine_of(suits: str, *overrides: str) -> tuple[str, set[int]]:
        """Extract there; the precision and the shards that were to be made."""
        monkeypatch.setattr("mer_dist.models.precision.of_this_machine", lambda: suits)
        (work,) = planned(load(path, overrides))
        missing = set(work.missing())
        assert main(["extract", str(path), *overrides]) == 0
        assert store.description(folder)["precision"] == work.extractor.precision
        return work.extractor.precision, missing

    every = {row.shard for row in shard_index.read(run.shards)}
    assert on_a_machine_of("fp32") == ("fp32", every)
    exact, before = store.load(folder).utterance, hashes(run)
    (folder / "00001.safetensors").unlink()
    capsys.readouterr()
    assert on_a_machine_of("bf16") == ("fp32", {1}) and hashes(run) == before
    assert "precision auto stays fp32" in (said := capsys.readouterr().err)
    assert "extractors.clip.precision=bf16" in said
    # To say what is meant anyway changes nothing; another one makes all again, never a part.
    assert on_a_machine_of("bf16", "extractors.clip.precision=fp32") == ("fp32", set())
    assert on_a_machine_of("bf16", "extractors.clip.precision=bf16") == ("bf16", every)
    half = store.load(folder).utterance
    assert np.abs(half - exact).max() > 1e-4 and np.allclose(half, exact, atol=0.05)
    (folder / "00000.safetensors").unlink()
    assert on_a_machine_of("fp32") == ("bf16", {0})
    assert np.array_equal(store.load(folder).utterance, half)


@pytest.mark.slow
def test_a_rank_says_what_is_missing_and_ends_well_only_if_others_will_do_it(
    job, tmp_path, monkeypatch, capsys
):
    path = with_clip_alone(job, tmp_path)
    run = run_of(path)
    monkeypatch.setattr("mer_dist.cli.end_with_launcher", lambda: None)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    started_by = "mer_dist.processes.ancestry.started_by"
    monkeypatch.setattr(started_by, lambda: None)
    assert main(["extract", str(path)]) == 2
    told = capsys.readouterr().err
    assert "process 0 of 3" in told and "unset RANK WORLD_SIZE LOCAL_RANK" in told
    assert "MER_DIST_BY_HAND=1" in told
    assert not run.features("clip").exists()
    monkeypatch.setattr(started_by, lambda: Starter("python", known=False))
    assert main(["extract", str(path)]) == 2
    told = capsys.readouterr().err
    assert "extract[0] process 0 of 3, started by python" in told and "clip lacks 2 of 4 shards" in told
    assert "processes 1, 2, none of which is at work" in told and not files.read_marker(run.features("clip"))
    with held(run.lock.with_name("lock.2"), "extract"):
        assert main(["extract", str(path)]) == 0
    assert "the part of processes 1, 2\n" in capsys.readouterr().err
    monkeypatch.setattr(started_by, lambda: Starter("slurmstepd"))
    assert main(["extract", str(path)]) == 0
    assert "none of which is at work now" in capsys.readouterr().err
    # What fusion says of it is an error, too, whatever the variables are.
    assert main(["fuse", str(path)]) == 2
    assert "incomplete; run extract" in capsys.readouterr().err and "RANK" not in os.environ
