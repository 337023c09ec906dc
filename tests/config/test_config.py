import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from mer_dist.config import config, sections
from mer_dist.config.section import with_values
from mer_dist.core.errors import UserError
from mer_dist.interop.export_model import export
from mer_dist.storage.files import write_text
from mer_dist.storage.run_folder import Run

SMALL = """
run: {folder: out, processes: 2}
corpus: {path: clips}
extractors:
  face: {family: clip, path: "${corpus.path}/model", finetune: {epochs: 3, lora: {rank: 4}}}
  voice: {family: hubert, path: m}
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        config.load(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_of_the_repository_loads(path):
    assert config.load(path, ["run.folder=out"]).extractors


def test_values_defaults_and_interpolation_arrive_as_typed_sections(write):
    loaded = config.load(write(SMALL))
    assert isinstance(loaded.extractors["face"].finetune, sections.FinetuneConfig)
    assert loaded.extractors["face"].finetune.lora.rank == 4
    assert loaded.extractors["face"].path == "clips/model"
    assert loaded.extractors["face"].finetuning is loaded.extractors["face"].finetune
    assert loaded.extractors["voice"].finetune is None
    with pytest.raises(ValueError, match="hubert at m is not fine-tuned"):
        _ = loaded.extractors["voice"].finetuning
    assert loaded.corpus.labels == ["neutral", "angry", "happy", "sad", "worried", "surprise"]


def test_an_unknown_key_is_refused_with_file_key_and_the_valid_ones(write):
    path = write(SMALL + "fuse: {widht: 64}")
    message = refused(path)
    assert str(path) in message and "'fuse.widht'" in message and "width, heads" in message
    assert "'extractors.face.finetune.lora.r'" in refused(write(SMALL), "extractors.face.finetune.lora.r=8")
    assert "'fusion'" in refused(write(SMALL + "fusion: {}"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.seed=0123", "run.seed is '0123' (str); it must be a whole number"),
        ("run.seed=1.0", "it must be a whole number"),
        ("run.seed=true", "it must be a whole number"),
        ("run.seed=1e3", "it must be a whole number"),
        ("run.seed=", "it must be a whole number"),
        ("extract.frame_level=no", "extract.frame_level is 'no' (str); it must be true or false"),
        ("extract.frame_level=2", "extract.frame_level is 2 (int); it must be true or false"),
        ("run.folder=12", "run.folder is 12 (int); it must be text"),
        ("fuse.feature_dropout=.nan", "it must be a number"),
        ("fuse.feature_dropout='0.1'", "it must be a number"),
        ("fuse.sets=a", "it must be a list"),
        ("fuse.sets=[a, 1]", "fuse.sets[1] is 1"),
        ("fuse=3", "it must be a section of keys"),
        ("vote.given={1: 0.5}", "it must be text"),
        ("vote.given={joy:0.5}", "a space has to follow its colon"),
        ("extractors.face.finetune.epochs='3'", "it must be a whole number"),
    ],
)
def test_no_value_is_coerced(write, override, words):
    message = refused(write(SMALL), override)
    assert words in message and f"override '{override}'" in message.replace('"', "'")


@pytest.mark.slow
def test_text_that_looks_like_a_number_date_or_boolean_stays_text(write):
    for raw in ("0123", "no", "2024-01-02", "1:30", "0x1F", "True"):
        assert config.load(write(SMALL), [f"run.folder={raw}"]).run.folder == raw
    assert config.load(write(SMALL), ["fuse.learning_rate=1e-4"]).fuse.learning_rate == 1e-4
    assert config.load(write(SMALL), ["fuse.weight_decay=0"]).fuse.weight_decay == 0


@pytest.mark.slow
def test_an_interpolation_is_resolved_and_its_type_is_checked(write):
    loaded = config.load(write(SMALL), ["run.threads=${run.processes}"])
    assert loaded.run.threads == 2
    assert "run.threads is 'out' (str)" in refused(write(SMALL), "run.threads=${run.folder}")
    numeric = ("run.folder='0123'", "run.threads=${run.folder}")
    assert "run.threads is '0123' (str)" in refused(write(SMALL), *numeric)
    assert "extract.frame_level is 2 (int)" in refused(write(SMALL), "extract.frame_level=${run.processes}")
    face = "extractors.voice.path=${extractors.face.precision}"
    assert config.load(write(SMALL), [face]).extractors["voice"].path == "auto"
    assert "run.foldr" in refused(write(SMALL), "corpus.path=${run.foldr}")


def test_overrides_win_in_order_and_can_take_a_section_away(write):
    loaded = config.load(
        write(SMALL), ["run.seed=1", "run.seed=2", "extractors.face.finetune=null", "fuse.sets=[a]"]
    )
    assert (loaded.run.seed, loaded.fuse.sets) == (2, ["a"])
    assert loaded.extractors["face"].finetune is None
    for wrong in ("run.seed", "=3", "run..seed=3"):
        assert "section.key=value" in refused(write(SMALL), wrong)


def test_a_key_that_stands_twice_is_refused_with_its_line(write):
    message = refused(write("run:\n  seed: 1\n  seed: 2\n"))
    assert "'seed' is here twice" in message and "line 3" in message


def test_what_is_not_a_mapping_of_keys_is_refused(write):
    tagged = "a: !!python/object:os.system {}"
    for text in ("[]", "just text", "{[a]: 1}", "run: [", tagged, "null: 1"):
        assert "job.yaml" in refused(write(text)), text
    assert "cannot be read" in refused(Path("nowhere/job.yaml"))


def test_a_missing_mandatory_value_is_named(write):
    path = write("corpus: {path: clips}")
    assert str(path) in (message := refused(path)) and "run.folder" in message
    assert "extractors.text.path" in refused(write(SMALL + "  text: {family: clip}"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "corpus.format=mer23",
            "corpus.format is 'mer23'; it must be one of: mer2024, mer2025, mer2026, manifest",
        ),
        ("run.processes=0", "run.processes is 0; it must be at least 1"),
        ("fuse.dropout=[1.0]", "fuse.dropout is 1.0; it must be in [0, 1)"),
        ("fuse.width=30", "must be a multiple of fuse.heads 4"),
        ("corpus.labels=[a]", "at least two labels"),
        ("corpus.labels=[a, a]", "each once"),
        ("corpus.labels=[calm, sad, Calm]", "'calm' and 'Calm', which differ in capitals"),
        ("corpus.labels=['caf\u00e9', 'cafe\u0301']", "keep one"),
        ("vote={prior: given, given: {joy: 1.2, sad: -0.2}}", "none of them below 0: {'sad': -0.2}"),
        ("folds.group=(", "not a regular expression"),
        ("folds.group=abc", "needs one (group)"),
        ("shard.faces=openface", "shard.openface must name its folder"),
        ("vote.prior=given", "vote.given belongs to"),
        ("vote={prior: given, given: {joy: 1.0}}", "a share for each of corpus.labels"),
        ("self_train.quota=0.0", "self_train.quota is 0.0"),
        ("extractors.voice.family=wav2vec", "it must be one of: clip, hubert, baichuan"),
        ("extractors={'a/b': {family: clip, path: m}}", "extractors.a/b"),
    ],
)
def test_a_value_out_of_range_is_refused_with_file_and_what_is_valid(write, override, words):
    path = write(SMALL)
    message = refused(path, override)
    assert words in message and str(path) in message


@pytest.mark.slow
def test_shares_are_told_by_labels_in_other_capitals_too(write):
    labels = "corpus.labels=[calm, sad]"
    loaded = config.load(write(SMALL), [labels, "vote={prior: given, given: {Calm: 0.7, SAD: 0.3}}"])
    assert loaded.vote.given == {"calm": 0.7, "sad": 0.3}
    loaded = config.load(write(SMALL), [labels, "vote={prior: probed, scorer_feedback: {Calm: 40.0}}"])
    assert loaded.vote.scorer_feedback == {"calm": 40.0}
    twice = "vote={prior: given, given: {Calm: 0.7, calm: 0.3, sad: 0.0}}"
    assert "a share for each of corpus.labels" in refused(write(SMALL), labels, twice)


def test_an_empty_override_is_empty_text(write):
    loaded = config.load(write(SMALL), ["vote.names=some.csv", "vote.names="])
    assert loaded.vote.names == ""


@pytest.mark.slow
def test_a_saved_configuration_loads_as_the_same_object(write, tmp_path):
    odd = [
        "run.folder='0123'",
        "corpus.path='no'",
        "corpus.labels=['null', '1e5', 愤怒, 'a: b', '']",
        "fuse.learning_rate=1e-05",
        "folds.group='^(.*)_\\d+$'",
    ]
    loaded = config.load(write(SMALL), odd)
    saved = tmp_path / "saved.yaml"
    config.save(loaded, saved)
    assert config.load(saved) == loaded
    assert loaded.corpus.labels == ["null", "1e5", "愤怒", "a: b", ""]


@pytest.mark.slow
def test_reading_a_configuration_never_imports_torch(write):
    code = (
        "import sys; from mer_dist.config import config; config.load(sys.argv[1]);"
        "heavy = {'torch', 'transformers', 'sklearn', 'av', 'cv2'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(write(SMALL))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


PATHS = {
    "run.folder": lambda config: config.run.folder,
    "run.accelerate": lambda config: config.run.accelerate,
    "corpus.path": lambda config: config.corpus.path,
    "shard.openface": lambda config: config.shard.openface,
    "extractors.x.path": lambda config: config.extractors["x"].path,
    "fuse.labels": lambda config: config.fuse.labels,
    "vote.names": lambda config: config.vote.names,
    "slurm.python": lambda config: config.slurm.python,
    "slurm.container": lambda config: config.slurm.container,
    "slurm.container_mounts": lambda config: config.slurm.container_mounts[0],
}


@pytest.mark.slow
@pytest.mark.parametrize("key", PATHS)
def test_in_every_path_a_tilde_is_the_home_and_a_shell_variable_is_refused_with_what_to_write(
    tmp_path, monkeypatch, key
):
    monkeypatch.setenv("HOME", "/home/me")
    path = tmp_path / "job.yaml"
    path.write_text("run: {folder: r}\nextractors: {x: {family: clip, path: models}}\n")

    def loaded(value: str) -> str:
        override = f"{key}=['{value}']" if key.endswith("mounts") else f"{key}={value}"
        return PATHS[key](config.load(path, [override]))

    assert loaded("~/a/b") == "/home/me/a/b"
    if "slurm" not in key:
        assert loaded("./~/a") == "./~/a" and loaded("a~") == "a~"
    assert loaded("${oc.env:HOME}/a") == "/home/me/a"
    with pytest.raises(
        UserError, match=r"is '\$HOME/a', and variables .* write '~/a', '\$\{oc.env:HOME\}/a', or"
    ):
        loaded("$HOME/a")
    with pytest.raises(UserError, match=r"variables .* write '/a/\$\{oc.env:DATA\}/b', or the path itself"):
        loaded("/a/$DATA/b")
    with pytest.raises(
        UserError, match=r"key 'HOME' not found; for a variable of the shell write \$\{oc.env:HOME\}"
    ):
        loaded("${HOME}/a")
    with pytest.raises(UserError, match="there is no such user; .* is './~no-one-is-called-so/a'"):
        loaded("~no-one-is-called-so/a")


def test_a_number_where_text_is_wanted_is_answered_with_the_quotes_that_it_needs(tmp_path):
    (tmp_path / "job.yaml").write_text("run: {folder: r}\ncorpus: {labels: [0, 1]}\n")
    with pytest.raises(
        UserError, match=r'corpus.labels\[0\] is 0 \(int\); it must be text; put it between quotes: "0"'
    ):
        config.load(tmp_path / "job.yaml")
    (tmp_path / "job.yaml").write_text("run: {folder: r}\ncorpus: {labels: [true, x]}\n")
    with pytest.raises(UserError, match='put it between quotes: "true"'):
        config.load(tmp_path / "job.yaml")


@pytest.fixture
def original(tmp_path, monkeypatch) -> Run:
    """A run in q1, as seen from the folder that it lies in."""
    monkeypatch.chdir(tmp_path)
    saved("q1", "q1")
    return Run("q1")


def saved(folder: str, named: str) -> Path:
    run = Run(folder)
    write_text(run.lock, "")
    config.save(config.Config(run=sections.RunConfig(folder=named), corpus=CORPUS), run.config)
    return run.config


CORPUS = sections.CorpusConfig(path="clips")


@pytest.mark.slow
def test_the_configuration_of_a_copied_or_renamed_run_is_not_taken_for_the_other_folder(original, tmp_path):
    shutil.copytree("q1", "q2")
    told = refused(Path("q2/config.yaml"))
    assert f"{tmp_path}/q2, but names run.folder 'q1', here {tmp_path}/q1" in told and "\n" not in told
    assert "copied or renamed" in told and "write run.folder=q2 behind it" in told
    assert str(tmp_path / "q1") in refused(
        tmp_path / "q2" / "config.yaml", "run.processes=2", "fuse.epochs=1"
    )
    # What is told to be written works, and so does the other folder where it is meant, and a section as a whole.
    for given, folder in (("run.folder=q2", "q2"), ("run.folder=q1", "q1"), ("run={folder: q3}", "q3")):
        assert config.load("q2/config.yaml", [given]).run.folder == folder
    shutil.rmtree("q1")
    assert "copied or renamed" in refused(Path("q2/config.yaml"))


@pytest.mark.slow
def test_a_saved_configuration_is_taken_where_its_run_is_be_it_through_a_link(
    original, tmp_path, monkeypatch
):
    Path("latest").symlink_to("q1")
    Path("job.yaml").symlink_to("q1/config.yaml")
    for path in ("q1/config.yaml", "latest/config.yaml", "job.yaml", "./q1/../q1/config.yaml"):
        assert config.load(path).run.folder == "q1"
    saved("q4", str(tmp_path / "latest"))
    assert "q4" in refused(Path("q4/config.yaml"))
    saved("q1", str(tmp_path / "latest"))
    monkeypatch.chdir("/")
    assert config.load(tmp_path / "q1" / "config.yaml").run.folder == str(tmp_path / "latest")


def test_a_saved_configuration_from_another_working_directory_is_refused(original, tmp_path, monkeypatch):
    (tmp_path / "q1" / "sub").mkdir()
    Path("job.yaml").symlink_to("q1/config.yaml")
    monkeypatch.chdir("q1/sub")
    for path in ("../config.yaml", "../../job.yaml"):
        told = refused(Path(path))
        assert f"here {tmp_path}/q1/sub/q1" in told and "another working directory" in told
    monkeypatch.chdir("..")
    assert f"write run.folder={tmp_path}/q1 behind it" in refused(Path("config.yaml"))


def test_a_copy_whose_links_lead_to_the_original_is_a_copy_and_folders_of_the_user_s_are_no_run(original):
    shutil.copytree("q1", "q2")
    Path("q2/config.yaml").unlink()
    Path("q2/config.yaml").symlink_to("../q1/config.yaml")
    assert "copied or renamed" in refused(Path("q2/config.yaml"))
    for name in ("features/hubert-UTT", "shards", "logs", "status", "rounds"):
        Path("project", name).mkdir(parents=True)
    Path("project/config.yaml").write_text("run: {folder: out}\ncorpus: {path: clips}\n", encoding="utf-8")
    assert config.load("project/config.yaml").run.folder == "out"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2024", "true", "a: b", "[x", "it's", "two words", "q2"])
def test_what_is_told_to_be_written_for_a_copy_names_the_copy(original, name):
    shutil.copytree("q1", name)
    told = refused(Path(name, "config.yaml"))
    (word,) = shlex.split(re.search(r"write (run\.folder=.*|'run\.folder=.*) behind it", told)[1])
    assert Path(name).samefile(config.load(Path(name, "config.yaml"), [word]).run.folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "left",
    [
        "status/lock",
        "quarantine.parquet",
        "shards/index.parquet",
        "features/f/set.json",
        "rounds/00/predictions.parquet",
    ],
)
def test_a_copy_of_a_part_of_a_run_is_one_too(original, left):
    config.save(config.Config(run=sections.RunConfig(folder="q1"), corpus=CORPUS), Run("part").config)
    assert config.load("part/config.yaml").run.folder == "q1"
    write_text(Path("part", left), "")
    assert "copied or renamed" in refused(Path("part/config.yaml"))


def test_a_question_about_a_run_folder_is_about_that_folder_whatever_its_configuration_names(original):
    made = config.of_run(original)
    tuned = sections.ExtractorConfig(family="clip", path="m", finetune=sections.FinetuneConfig())
    made = with_values(made, extractors={"c": tuned})
    config.save(made, original.config)
    Path("q1").rename("q5")
    assert config.of_run(Run("q5")).run.folder == "q5"
    with pytest.raises(UserError, match="^q5/shards"):
        export(Run("q5"), "c@all", Path("out"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fuse: {guide: audio}", "fuse.guide is called fuse.query_modality now"),
        ("fuse: {context: false}", "fuse.context is called fuse.cross_attention now"),
        ("fuse: {shortcut: false}", "fuse.shortcut is called fuse.linear_skip now"),
        ("fuse: {fusion: gates}", "must be one of: gating, concatenate, mean"),
        ("vote: {probes: {calm: 1.0}}", "vote.probes is called vote.scorer_feedback now"),
        (
            "extractors: {clip: {family: clip, path: x, budget: 8}}",
            "extractors.clip.budget is called extractors.clip.batch_budget now",
        ),
    ],
)
def test_a_key_of_an_earlier_version_is_refused_with_what_it_is_called_now(tmp_path, old, new):
    path = tmp_path / "job.yaml"
    path.write_text(f"run: {{folder: {tmp_path}}}\n{old}\n", "utf-8")
    with pytest.raises(UserError, match=new):
        config.load(path)
