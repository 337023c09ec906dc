"""docs/extending.md: its examples are run as they stand, and what it promises of plugins holds."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import plugin_files
import pytest
import torch
from media_files import ramp, tone, write_mp4
from transformers import Dinov2Config, Dinov2Model

from mer_dist.cli import main
from mer_dist.config import plugins
from mer_dist.config.config import load
from mer_dist.config.sections import CorpusConfig, ExtractorConfig
from mer_dist.core.errors import DONE, QUARANTINED, USAGE, UserError
from mer_dist.core.records import Clip
from mer_dist.core.registry import FORMATS
from mer_dist.corpus import clips
from mer_dist.features import store
from mer_dist.models.classifier import load_extractor
from mer_dist.shards import shard_index
from mer_dist.shards.reader import Reader
from mer_dist.stages import extract
from mer_dist.storage import quarantine
from mer_dist.storage.run_folder import Run

ENCODER, FORMAT = plugin_files.EXAMPLES["dinov2"], plugin_files.EXAMPLES["folders"]
JOB = """
plugins: [dinov2, folders]
run: {{folder: {folder}/run}}
corpus: {{format: folders, path: {folder}/corpus, labels: [happy, sad]}}
shard: {{workers: 1, clips: 2, frames: 3, image_size: 32, faces: none}}
extractors:
  frames: {{family: dinov2, path: {folder}/model, finetune: null}}
"""


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """What a test registers goes with it."""
    plugin_files.begin(monkeypatch)
    yield
    plugin_files.forget()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Both examples as files beside a configuration, a corpus of folders, and a tiny random model."""
    folder = tmp_path_factory.mktemp("extending")
    (folder / "dinov2.py").write_text(ENCODER, encoding="utf-8")
    (folder / "folders.py").write_text(FORMAT, encoding="utf-8")
    for number, name in enumerate(("happy/a", "sad/b", "unlabeled/c", "bored/d")):
        write_mp4(folder / "corpus" / f"{name}.mp4", ramp(12), tone(300 + 40 * number, 0.5))
    (folder / "corpus" / "happy" / "a.txt").write_text("今天真好", encoding="utf-8")
    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "mlp_ratio": 2}
    Dinov2Model(Dinov2Config(**tiny, image_size=28, patch_size=14)).save_pretrained(folder / "model")
    (folder / "job.yaml").write_text(JOB.format(folder=folder), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def sharded(made):
    with pytest.MonkeyPatch.context() as patch:
        plugin_files.begin(patch)
        assert main(["shard", str(made / "job.yaml")]) == QUARANTINED, "one clip has a label that is none"
    return made


@pytest.mark.parametrize("example", [ENCODER, FORMAT])
def test_an_example_is_short(example):
    assert sum(bool(line.strip()) for line in example.splitlines()) < 40, "lines that are not blank"


@pytest.mark.slow
def test_the_format_of_the_page_lists_what_lies_in_its_folders(sharded):
    run = Run(sharded / "run")
    rows = {row.name: (row.split, row.label, row.transcript) for row in shard_index.read(run.shards)}
    assert rows == {
        "a": ("labeled", "happy", "今天真好"),
        "b": ("labeled", "sad", None),
        "c": ("unlabeled", None, None),
    }
    (problem,) = quarantine.read(run.quarantine)
    assert problem.name == "d" and "'bored' is none of corpus.labels" in problem.reason


@pytest.mark.slow
def test_the_encoder_of_the_page_is_extracted_and_found_from_the_run_folder(sharded, monkeypatch):
    assert main(["extract", str(sharded / "job.yaml")]) in (DONE, QUARANTINED)
    run = Run(sharded / "run")
    found = store.load(run.features("frames"))
    assert sorted(found.names) == ["a", "b", "c"]
    row = next(row for row in shard_index.read(run.shards) if row.name == "a")
    loaded = load_extractor(load(sharded / "job.yaml").extractors["frames"])
    with torch.no_grad():
        expected, _ = loaded.embed(**loaded.collate(loaded.prepare(Reader(run.shards).read(row))))
    assert expected.shape == (3, 16)
    own = found.utterance[found.names.index("a")]
    np.testing.assert_allclose(own, expected.mean(0), rtol=1e-5, atol=1e-6)
    plugin_files.begin(monkeypatch)
    again = load(run.config)
    assert again.plugins == [str(sharded / "dinov2.py"), str(sharded / "folders.py")]
    assert not extract.unfinished(again)


@pytest.mark.slow
def test_a_changed_encoder_makes_its_features_again(sharded, monkeypatch):
    def fingerprint() -> dict:
        plugin_files.begin(monkeypatch)
        (work,) = extract.planned(load(sharded / "job.yaml"))
        return work.fingerprint

    before = fingerprint()
    assert fingerprint() == before
    source = sharded / "dinov2.py"
    source.write_text(ENCODER.replace("states[:, 0]", "states[:, 1]"), encoding="utf-8")
    changed = fingerprint()
    source.write_text(ENCODER, encoding="utf-8")
    assert before.keys() == changed.keys() and all(changed[shard] != before[shard] for shard in before)


@pytest.mark.slow
def test_the_encoder_of_the_page_is_planned(made, capsys):
    tuned = "extractors.frames.finetune={batch: 4}"
    assert main(["plan", "--json", str(made / "job.yaml"), tuned]) == DONE
    facts = json.loads(capsys.readouterr().out)["extractors"]["frames"]
    weights = sum(weight.numel() for weight in Dinov2Model.from_pretrained(made / "model").parameters())
    assert facts["parameters"] == weights and facts["width"] == 16
    # Six layers of two linear ones, 16 x 32 each, with rank 16 on both sides; and the head.
    assert facts["finetune"]["trainable"] == 6 * 2 * 16 * (16 + 32) + 2 * 16 + 2
    # A pass of 256 frames holds their pixels in float32 at least.
    assert facts["extract"]["gpu"]["activations"] > 256 * 3 * 224 * 224 * 4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no such module"),
        ("import nonesuch_of_mine", "ModuleNotFoundError: No module named 'nonesuch_of_mine' ({}, line 1)"),
        ("\nx = 1 / 0", "ZeroDivisionError: division by zero ({}, line 2)"),
        ("def f(:", "SyntaxError: invalid syntax ({}, line 1)"),
        ("raise SystemExit('away')", "SystemExit: away ({}, line 1)"),
        (
            FORMAT.replace('"folders"', '"manifest"'),
            "'manifest' is registered twice, by mer_dist.corpus.manifest",
        ),
        (FORMAT.replace('"folders"', '"a b"'), "a name is letters, digits"),
        (FORMAT + FORMAT, "'folders' is registered twice"),
        (ENCODER.replace("def length", "def size"), "'dinov2': Dinov2 lacks length"),
        (ENCODER.replace("    enough=", "    # "), "'dinov2': Dinov2 lacks enough=… in register"),
        (ENCODER.replace('"video"', '"frames"'), "has the modality 'frames'; it must be one of: audio"),
        (ENCODER.replace("(Extractor)", ""), "Dinov2 is no subclass of"),
        (
            ENCODER.replace('"dinov2",', '"clip",'),
            "'clip' is registered twice, by mer_dist.models.clip_family",
        ),
    ],
)
def test_a_plugin_that_fails_is_one_line_and_a_usage_error(tmp_path, capsys, content, words):
    job, own = tmp_path / "job.yaml", tmp_path / "mine.py"
    job.write_text(f"plugins: [mine]\nrun: {{folder: {tmp_path}/run}}\n")
    if content is not None:
        own.write_text(content, encoding="utf-8")
    assert main(["shard", str(job)]) == USAGE
    said = capsys.readouterr().err.strip()
    assert "plugins: " in said and words.format(own) in said and len(said.splitlines()) == 1
    # Nothing of it stays behind.
    assert plugins._PREFIX + "mine" not in sys.modules


def test_an_entry_that_is_no_module_is_refused(tmp_path):
    for name in ("my encoder", "a/b", "", "os; x", "..up"):
        with pytest.raises(UserError, match="an entry is a module"):
            plugins.resolved([name], tmp_path)


def test_a_file_beside_the_configuration_hides_no_library(tmp_path):
    (tmp_path / "torch.py").write_text("OWN = True")
    (entry,) = plugins.resolved(["torch"], tmp_path)
    plugins.load([entry])
    assert sys.modules["torch"] is torch and str(tmp_path) not in sys.path
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "torch.py").write_text("")
    with pytest.raises(UserError, match="is called the same"):
        plugins.load(plugins.resolved(["other/torch.py"], tmp_path))


def test_an_unknown_name_is_refused_with_the_known_ones_and_how_to_add_one():
    for known, refused in (
        (
            "clip, hubert, baichuan, text, audio, image, video",
            lambda: ExtractorConfig(family="wavlm", path="m"),
        ),
        ("mer2024, mer2025, mer2026, manifest", lambda: CorpusConfig(format="iemocap")),
    ):
        with pytest.raises(UserError, match=rf"must be one of: {known}, or .*'plugins'.*docs/extending\.md"):
            refused()


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"name": "a/b", "label": "sad", "split": "labeled"}, "slash"),
        ({"name": "a", "label": "bored", "split": "labeled"}, "none of corpus.labels"),
        (
            {"name": "a", "label": "sad", "split": "unlabeled"},
            "has the split 'unlabeled' and the label 'sad'",
        ),
        ({"name": "a", "label": None, "split": "train"}, "has the split 'train'"),
    ],
)
def test_what_a_format_lists_is_checked(facts, words):
    listed = Clip(video=None, audio=None, transcript="x", **facts)
    FORMATS.add("mine", lambda path, labels, encoding: ([listed], []), "mine")
    with pytest.raises(UserError, match=words):
        clips(CorpusConfig(format="mine", path="x", labels=["happy", "sad"]))


def test_the_facts_of_the_families_need_no_torch():
    program = (
        "import sys; from mer_dist.models.family import FAMILIES; "
        "print(*(FAMILIES[name].modality for name in FAMILIES), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["video", "audio", "text", "text", "audio", "video", "video", "False"]
