"""New clips through a run and through bundles of it: the run's own answers, whatever the company, the folder, the number
of processes, and kills."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import media_files
import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import small_job
from conftest import ROOT

from mer_dist import cli
from mer_dist.core.errors import Stopped, UserError
from mer_dist.fusion import predictions
from mer_dist.fusion.trained import FusedAnswers
from mer_dist.predict import bundle, card, clips, model, output
from mer_dist.predict.predictor import Prediction, Predictor
from mer_dist.stages import predict as stage
from mer_dist.storage import files, quarantine
from mer_dist.storage.run_folder import Run

pytestmark = pytest.mark.slow
NEW = 6


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    """A finished run whose unlabelled clips lie in ``corpus/video-unlabeled*``; its folder."""
    folder = tmp_path_factory.mktemp("predict")
    path = small_job.make(folder)
    done = small_job.mer_dist("run", path, "vote.prior=none", "extract.frame_level=false")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def run(job) -> Run:
    return Run(job / "run")


@pytest.fixture
def new(job, tmp_path) -> Path:
    """Some unlabelled clips of the run as new ones: a folder of them, and ``lines.csv``."""
    folder = tmp_path / "new"
    folder.mkdir()
    names = sorted(path.stem for path in job.glob("corpus/video-unlabeled*/*.mp4"))[:NEW]
    for name in names:
        shutil.copy(next(job.glob(f"corpus/video-unlabeled*/{name}.mp4")), folder)
    rows = [[f"u{row:03d}", f"我说第{small_job.LABELED + row}句话"] for row in range(NEW)]
    media_files.write_csv(tmp_path / "lines.csv", [["name", "transcript"], *rows])
    return folder


def predicted(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "predictions.csv", encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def same(found: dict[str, dict[str, str]], run: Run, tolerance: float = 1e-4) -> bool:
    """Whether these are the run's own answers, with its probabilities."""
    made = predictions.read(run.vote.predictions)
    row_of = {name: row for row, name in enumerate(made.names)}
    for name, row in found.items():
        own = made.probability[row_of[name]]
        wanted = [float(row[f"p_{label}"]) for label in made.labels]
        if np.abs(own - wanted).max() > tolerance or row["label"] != made.labels[made.answer[row_of[name]]]:
            return False
    return bool(found)


def command(model: Path, new: Path, out: Path, *options: str | Path) -> int:
    words = [
        "predict",
        model,
        new,
        "--out",
        out,
        "--transcripts",
        new.parent / "lines.csv",
        "--workers",
        1,
        *options,
    ]
    return cli.main([str(word) for word in words])


def test_clips_of_the_run_get_its_own_answers_and_every_column_is_there(run, new, tmp_path):
    assert command(run.folder, new, tmp_path / "out", "--explain") == 0
    found = predicted(tmp_path / "out")
    assert len(found) == NEW and same(found, run)
    columns = [*next(iter(found.values()))]
    assert columns[:3] == ["name", "label", "confidence"] and columns[3].startswith("p_")
    assert columns[9:] == [
        "missing",
        *(
            f"{name}_{what}"
            for name in ("clip@tuned", "hubert", "baichuan@tuned")
            for what in ("label", "confidence")
        ),
        *(f"gate_{name}" for name in ("audio", "video", "text")),
    ]
    table = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert [row["name"] for row in table] == [*found]
    assert all(float(row["gate_audio"]) > 0 and row["missing"] == "" for row in found.values())
    # Nothing of the clips stays but their predictions.
    kept = {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert kept <= {".csv", ".parquet", ".log", ".jsonl", ".json", ""}


def test_the_answer_to_a_clip_does_not_depend_on_its_company(run, new):
    from mer_dist.corpus import convert

    predictor = Predictor.load(run.folder)
    found, _ = clips.find(new, new.parent / "lines.csv")
    encoded = [convert.convert(predictor.shard, clip) for clip in found]
    together, *_ = predictor.encoded(encoded)
    for size in (1, 2):
        for start in range(0, NEW, size):
            own, *_ = predictor.encoded(encoded[start : start + size])
            for alone, beside in zip(own, together[start : start + size], strict=True):
                assert alone.label == beside.label and alone.name == beside.name
                gap = [
                    abs(alone.probability[label] - beside.probability[label]) for label in predictor.labels
                ]
                assert max(gap) < 1e-4


def test_one_clip_by_its_file_from_python(run, new):
    predictor = Predictor.load(run.folder)
    one = predictor(new / "u000.mp4", transcript=f"我说第{small_job.LABELED}句话")
    made = predictions.read(run.vote.predictions)
    own = made.probability[made.names.index("u000")]
    assert np.abs(own - [one.probability[label] for label in made.labels]).max() < 1e-4
    assert one.confidence == max(one.probability.values()) and one.missing == []
    spoken = predictor(transcript="你好")
    assert spoken.missing == ["video", "audio"]
    with pytest.raises(UserError, match="none is given"):
        predictor()
    with pytest.raises(UserError, match=r"none.mp4: there is no such file"):
        predictor(new / "none.mp4")
    with pytest.raises(UserError, match="a transcript is text, and not a int"):
        predictor(transcript=5)


@pytest.mark.parametrize("merged", [False, True])
def test_a_bundle_answers_the_same_where_the_run_and_its_models_are_not(job, run, new, tmp_path, merged):
    away = tmp_path / "away"
    assert cli.main(["bundle", str(run.folder), str(away / "bundle"), *(["--merged"] if merged else [])]) == 0
    told = (away / "bundle" / "README.md").read_text("utf-8")
    assert "24 labelled clips" in told and "this one answers" in told and "10 unlabelled" in told
    assert str(job) not in told
    models = ["hubert"] if merged else ["clip", "hubert"]
    assert all(f"{name}=FOLDER" in told for name in models) and ("baichuan=FOLDER" not in told)
    shutil.copytree(job / "models", away / "models")
    told = (away / "bundle" / "bundle.json").read_text("utf-8")
    assert str(job) not in told and "a001" not in told and "u001" not in told
    named = [f"{name}={away / 'models' / name}" for name in models]
    assert command(away / "bundle", new, tmp_path / "out") == 2, "its base models are not named"
    assert command(away / "bundle", new, tmp_path / "out", "--models", *named) == 0
    assert same(predicted(tmp_path / "out"), run)


def bundled(run: Run, folder: Path) -> Path:
    bundle.write(run.folder, folder)
    return folder


@pytest.fixture
def base_models(job):
    return {name: job / "models" / name for name in ("hubert", "clip")}


def test_another_base_model_is_refused(job, run, base_models, tmp_path):
    made = bundled(run, tmp_path / "bundle")
    other = shutil.copytree(job / "models" / "hubert", tmp_path / "hubert")
    weights = safetensors.numpy.load_file(other / "model.safetensors")
    name = max(weights, key=lambda name: weights[name].size)
    weights[name] = weights[name] + 1
    safetensors.numpy.save_file(weights, other / "model.safetensors")
    with pytest.raises(UserError, match=r"hubert/model.safetensors is another file.*--models hubert=FOLDER"):
        bundle.load(made, base_models | {"hubert": other}).check()
    # The run itself knows its base models, too.
    with pytest.raises(UserError, match=r"hubert/model.safetensors is another file"):
        bundle.load(run.folder, {"hubert": other}).check()
    # One more file that would be read in place of the right one.
    more = shutil.copytree(job / "models" / "hubert", tmp_path / "more")
    (more / "model.safetensors").rename(more / "pytorch_model.bin")
    shutil.copy(other / "model.safetensors", more)
    with pytest.raises(UserError, match="is another file"):
        bundle.load(made, base_models | {"hubert": more}).check()
    with pytest.raises(
        UserError, match="the base model of the extractor hubert is not in .*--models hubert=FOLDER"
    ):
        bundle.load(made, base_models | {"hubert": tmp_path / "none"}).check()
    with pytest.raises(UserError, match="the bundle has no such extractor; it has: baichuan, clip, hubert"):
        bundle.load(made, base_models | {"wav2vec": other})
    with pytest.raises(UserError, match="the extractor hubert needs its base model, hubert; name its folder"):
        bundle.load(made, {"clip": base_models["clip"]})


def test_a_bundle_of_another_version_or_with_something_else_in_it_is_refused(run, base_models, tmp_path):
    made = bundled(run, tmp_path / "bundle")
    path = made / "bundle.json"
    facts = files.read_json(path)
    entry = facts["extractors"]["clip"]
    for change, why in (
        ({"format": 99}, "its format is 99"),
        (
            {"extractors": facts["extractors"] | {"clip": entry | {"files": "../../etc"}}},
            "outside the bundle",
        ),
        (
            {
                "extractors": facts["extractors"]
                | {"clip": entry | {"settings": entry["settings"] | {"family": "mine"}}}
            },
            "mine",
        ),
        ({"shard": {"frames": "many"}}, "make the bundle again"),
    ):
        changed = {key: value for key, value in (facts | change).items() if key != "checksum"}
        files.write_json(path, changed | {"checksum": files.fingerprint_of(changed)})
        with pytest.raises(UserError, match=why):
            bundle.load(made, base_models)
        files.write_json(path, facts | change)
        with pytest.raises(
            UserError, match=r"its format is 99|bundle.json: it was changed since it was written"
        ):
            bundle.load(made, base_models)


def test_a_bundle_with_other_bytes_than_were_written_is_refused(run, base_models, tmp_path):
    made = bundled(run, tmp_path / "bundle")
    content = bytearray((made / "fusion.safetensors").read_bytes())
    content[-100:-90] = b"0123456789"
    (made / "fusion.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="fusion.safetensors: missing, or other bytes than were written"):
        bundle.load(made, base_models)
    shutil.rmtree(made)
    made = bundled(run, tmp_path / "bundle")
    # An adapter that only a pickle holds is none.
    adapter = made / "adapters" / "clip"
    (adapter / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter_model.safetensors: missing, or other bytes"):
        Predictor(bundle.load(made, base_models))
    with pytest.raises(UserError, match="that is a bundle already"):
        bundle.write(made, tmp_path / "again")


def test_what_was_finished_is_kept_and_a_killed_prediction_goes_on(run, new, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "PART", 2)
    found, problems = clips.find(new, new.parent / "lines.csv")
    whole, out = tmp_path / "whole", tmp_path / "out"
    trained = bundle.load(run.folder)
    cut = trained.cut(workers=1)
    stage.predict(trained, cut, found, problems, whole)
    asked = iter([False, False, False, True])
    with pytest.raises(Stopped, match="asked to stop in part 1"):
        stage.predict(trained, cut, found, problems, out, should_stop=lambda: next(asked))
    first = out / "parts" / "00000.parquet"
    before = first.stat().st_mtime_ns
    assert not (out / "predictions.csv").exists() and len([*out.glob("parts/*.parquet")]) == 1
    (out / "parts" / "00007.parquet").write_bytes(b"of another, longer list")
    stage.predict(trained, cut, found, problems, out)
    assert first.stat().st_mtime_ns == before and len([*out.glob("parts/*.parquet")]) == 3
    assert (out / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()
    with pytest.raises(
        UserError, match="it has predictions of 5 clips that are not among these, for example u001"
    ):
        stage.predict(trained, cut, found[:1], problems, out)
    # A clip that changed is answered anew, and its part alone is computed.
    shutil.copy(new / "u005.mp4", new / "u004.mp4")
    found, _ = clips.find(new, new.parent / "lines.csv")
    stage.predict(trained, cut, found, [], out)
    assert first.stat().st_mtime_ns == before
    assert (
        predicted(out)["u004"] != predicted(whole)["u004"]
        and predicted(out)["u005"] == predicted(whole)["u005"]
    )


def test_two_processes_answer_as_one(run, new, tmp_path, monkeypatch):
    words = [run.folder, new, "--transcripts", new.parent / "lines.csv", "--workers", 1, "--out"]
    done = small_job.mer_dist("predict", *map(str, words), tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert same(predicted(tmp_path / "two"), run)


def test_clips_with_parts_that_are_damaged_or_missing_are_answered_and_told(run, new, tmp_path, capsys):
    (new / "empty.mp4").touch()
    media_files.write_mp4(new / "silent.mp4", media_files.ramp(12))
    (new / "notes.pdf").write_bytes(b"%PDF")
    assert command(run.folder, new, tmp_path / "out") == 3
    found = predicted(tmp_path / "out")
    assert found["empty"]["missing"] == "video audio text" and found["silent"]["missing"] == "audio text"
    # Nothing is known of it: the label shares of training, and how sure that is.
    assert float(found["empty"]["confidence"]) == pytest.approx(1 / 6, abs=0.05)
    lost = {(row.name, row.lost) for row in quarantine.read(Run(tmp_path / "out").quarantine)}
    assert ("empty", "clip") in lost and ("silent", "audio") in lost
    said = capsys.readouterr().err
    assert "1 entries do not count as clips" in said and "1 clips have no usable modality" in said


def test_what_cannot_be_predicted_is_refused_in_a_line(run, new, tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "bad.csv").write_text("name,words\nu000,x\n")
    (tmp_path / "others.csv").write_text("name,transcript\nz,x\n")
    for arguments, why in (
        ((tmp_path / "none",), "no such file or folder"),
        ((tmp_path / "nothing",), "no media files in it"),
        ((new, tmp_path / "bad.csv"), "it has no column transcript or text or sentence or chinese"),
        ((new, tmp_path / "others.csv"), "none of its 1 names is that of a clip"),
    ):
        with pytest.raises(UserError, match=why):
            clips.find(*arguments)
    shutil.copy(new / "u000.mp4", new / "u000.mkv")
    with pytest.raises(UserError, match="'u000' occurs twice"):
        clips.find(new)
    with pytest.raises(UserError, match="no run and no bundle there"):
        bundle.load(new)
    with pytest.raises(UserError, match="exists and is not empty"):
        bundle.write(run.folder, new)
    for words in (
        ["predict", run.folder],
        ["predict", run.folder, new, "--out", run.folder],
        ["predict", run.folder, new, "--models", "hubert"],
        ["predict", run.folder, new, "--openface", new],
        ["predict", run.folder, "--features", f"voice={new}"],
        ["predict", run.folder, new, "--out", tmp_path / "bad.csv"],
    ):
        assert (
            cli.main([*map(str, words), *([] if "--out" in words else ["--out", str(tmp_path / "out")])]) == 2
        )
    assert not (run.folder / "predictions.csv").exists()


def test_a_table_names_the_clips_and_its_labels_are_not_read(run, new, tmp_path):
    rows = [[name, f"new/{name}.mp4", "bored", "labeled"] for name in ("u000", "u001")]
    table = media_files.write_csv(tmp_path / "t.csv", [["name", "video", "emotion", "split"], *rows])
    assert command(run.folder, table, tmp_path / "out") == 0
    assert same(predicted(tmp_path / "out"), run)


def test_a_run_whose_labels_or_models_changed_since_its_vote_is_refused(run, tmp_path):
    copy = Run(shutil.copytree(run.folder, tmp_path / "copy"))
    facts = files.read_json(copy.round(1).folder / "complete.json")
    files.write_marker(
        copy.round(1).folder, "another", **{key: facts[key] for key in ("of", "clips", "oof_waf")}
    )
    with pytest.raises(UserError, match="rounds/01: stale.*run fuse"):
        bundle.load(copy.folder)


def test_faces_by_openface_must_be_named_and_are_never_those_of_the_runs_own_clips(run, tmp_path):
    copy = Run(shutil.copytree(run.folder, tmp_path / "copy"))
    text = copy.config.read_text("utf-8").replace("faces: none", "faces: openface")
    copy.config.write_text(text.replace("openface: ''", f"openface: {tmp_path}"), encoding="utf-8")
    trained = bundle.load(copy.folder)
    assert trained.openface and trained.shard.faces == "none"
    with pytest.raises(UserError, match="name those of the new clips with --openface FOLDER"):
        Predictor(trained)
    assert trained.cut(tmp_path).openface == str(tmp_path)
    with pytest.raises(UserError, match="learned from faces of shard.faces: none"):
        bundle.load(run.folder).cut(tmp_path)


def test_outside_labellers_of_the_run_are_told_and_bar_the_estimate_of_shares(run, new, tmp_path, capsys):
    copy = Run(shutil.copytree(run.folder, tmp_path / "copy"))
    text = copy.config.read_text("utf-8").replace("teachers: []\n  given", "teachers: [llm]\n  given")
    copy.config.write_text(text, encoding="utf-8")
    copy.teacher("llm").parent.mkdir()
    copy.teacher("llm").touch()
    recipe = files.read_marker(copy.vote.folder)
    assert recipe is not None
    words = ["predict", str(copy.folder), str(new), "--out", str(tmp_path / "out"), "--prior", "estimate"]
    assert cli.main(words) == 2, "its vote is older than its settings"
    trained = replace(bundle.load(run.folder), teachers=["llm"])
    stage._check(trained, stage.How())
    with pytest.raises(UserError, match="asked outside labellers, which new clips do not have"):
        stage._check(trained, stage.How(prior="estimate"))
    assert "Outside labellers (llm) joined the vote of the run" in card.text(run.folder, trained, [])


def test_an_earlier_version_of_the_run_says_what_to_do(run, tmp_path):
    copy = Run(shutil.copytree(run.folder, tmp_path / "copy"))
    prior = json.loads(copy.vote.prior.read_text("utf-8"))
    del prior["pooling"]
    files.write_json(copy.vote.prior, prior)
    with pytest.raises(UserError, match="an earlier version of mer-dist made its models; run fuse again"):
        model.TrainedModel.of_run(copy.folder)


def test_labels_of_any_name_have_their_column(tmp_path):
    answers = FusedAnswers(probability=np.full((1, 2), 0.5), present=np.ones(1, bool), valid={}, alone={})
    shares = {"no_label": 0.5, "missing": 0.5}
    made = output.table([Prediction(name="a", label="no_label", probability=shares, missing=[])], answers)
    assert made.column_names == ["name", "label", "confidence", "p_no_label", "p_missing", "missing"]
    output.write(tmp_path, made)
    assert (tmp_path / "predictions.csv").read_text().splitlines()[
        1
    ] == "a,no_label,0.500000,0.500000,0.500000,"


@pytest.mark.long
def test_the_benchmark_of_predicting_prints_both_ratios(run, new):
    command = [
        sys.executable,
        ROOT / "benchmarks" / "predict.py",
        run.folder,
        new,
        "--clips",
        "2",
        "--rounds",
        "1",
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for line in ("all over decoding and forward passes: ", "start-up over imports: "):
        assert float(done.stdout.partition(line)[2].split()[0]) > 0.5
