"""Two views of one video in one pass over it: the face, and the whole frame."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import small_models
from media_files import drawn_face, tone, write_csv, write_mp4

from mer_dist.config.config import load
from mer_dist.core.errors import UserError
from mer_dist.corpus import clips as corpus_clips
from mer_dist.corpus.decode import decode
from mer_dist.crossfit import adapters
from mer_dist.features import store
from mer_dist.inspect.verify import verify
from mer_dist.shards import shard_index
from mer_dist.shards.reader import Reader
from mer_dist.shards.views import FACE, FRAME, of_view, suffixes
from mer_dist.stages.extract import extract
from mer_dist.stages.finetune import finetune
from mer_dist.stages.shard import shard
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run

pytestmark = pytest.mark.slow
FACES, PLAIN = ("f0", "f1", "f2", "f3"), ("p0", "p1")
JOB = """
run: {{folder: {folder}/run}}
corpus: {{format: manifest, path: {folder}/clips.csv, labels: [happy, sad]}}
shard: {{workers: 1, frames: 4, image_size: 32, views: {views}, faces: {faces}, faceless: {faceless}, openface: {folder}/faces}}
folds: {{count: 2}}
extractors:
{extractors}
"""
ONE = "  {name}: {{family: clip, path: {folder}/models/clip, view: {view}, finetune: {finetune}}}"


TUNED = "{epochs: 1, batch: 4, precision: fp32, lora: {rank: 2}}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    for row, name in enumerate(FACES):
        pictures = [drawn_face(120 + 40 * row + 4 * step, 120) for step in range(8)]
        write_mp4(
            folder / f"{name}.mp4",
            np.stack([cv2.resize(one, (424, 240)) for one in pictures]),
            tone(300 + 40 * row),
        )
    for row, name in enumerate(PLAIN):
        write_mp4(
            folder / f"{name}.mp4", np.full((8, 48, 64, 3), 60 + 80 * row, np.uint8), tone(700 + 40 * row)
        )
    rows = [
        [name, f"{name}.mp4", "", "he speaks", ("happy", "sad")[row % 2], "labeled"]
        for row, name in enumerate((*FACES, *PLAIN))
    ]
    columns = ["name", "video", "audio", "transcript", "label", "split"]
    write_csv(folder / "clips.csv", [columns, *rows])
    small_models.make(folder / "models", ["he speaks"])
    return folder


def job(
    corpus: Path,
    folder: Path,
    *,
    views="[face, frame]",
    faces="cascade",
    faceless="frame",
    own="face frame",
    finetune="null",
):
    text = JOB.format(
        folder=corpus,
        views=views,
        faces=faces,
        faceless=faceless,
        extractors="\n".join(
            ONE.format(name=view, folder=corpus, view=view, finetune=finetune) for view in own.split()
        ),
    ).replace(f"{corpus}/run", str(folder / "run"))
    files.write_text(folder / "job.yaml", text)
    return load(folder / "job.yaml")


def made(config) -> Run:
    shard(config)
    extract(config)
    return Run(config.run.folder)


def features(run: Run, name: str) -> dict[str, np.ndarray]:
    found = store.load(run.features(name))
    return dict(zip(found.names, found.utterance, strict=True))


def test_each_view_is_what_it_is_alone_and_an_extractor_sees_the_one_it_asks_for(corpus, tmp_path):
    both = made(job(corpus, tmp_path / "both"))
    face = made(job(corpus, tmp_path / "face", views="[face]", own="face"))
    frame = made(job(corpus, tmp_path / "frame", views="[face]", faces="none", own="face"))
    of_faces, of_frames = features(both, "face"), features(both, "frame")
    assert {*of_faces} == {*of_frames} == {*FACES, *PLAIN}
    for name in of_faces:
        assert np.array_equal(of_faces[name], features(face, "face")[name])
        assert np.array_equal(of_frames[name], features(frame, "face")[name])
        # Where no face is found, the face's place is taken by the whole frame.
        assert np.array_equal(of_faces[name], of_frames[name]) == (name in PLAIN)
    assert verify(both.folder) == []
    row = shard_index.read(both.shards)[0]
    assert [*row.members] == [*suffixes(FACE, 4), *suffixes(FRAME, 4), "flac", "json"] and row.frames == 4
    reader = Reader(both.shards)
    whole = reader.read(row.of_view(FRAME), "video").images()
    assert whole.shape == (4, 32, 32, 3) and not np.array_equal(whole, reader.read(row).images())


def test_a_clip_whose_face_is_masked_keeps_its_whole_frames(corpus, tmp_path):
    config = job(corpus, tmp_path / "masked", faceless="mask")
    run = made(config)
    assert {*features(run, "face")} == {*FACES} and {*features(run, "frame")} == {*FACES, *PLAIN}
    rows = {row.name: row for row in shard_index.read(run.shards)}
    assert rows["p0"].frames == 0 and rows["p0"].missing == []
    assert rows["p0"].of_view(FACE).missing == ["video"] and rows["p0"].of_view(FRAME).frames == 4
    assert verify(run.folder) == []
    # The same of training: without a face there is nothing to learn from.
    config = job(corpus, tmp_path / "masked", faceless="mask", finetune=TUNED)
    seen = {
        adapter.name: {row.name for row in adapter.rows}
        for adapter in adapters.planned(config)
        if adapter.held_out_fold is None
    }
    assert seen == {"face": {*FACES}, "frame": {*FACES, *PLAIN}}
    finetune(config)
    extract(config)
    assert {*features(run, "frame@fold-0")} | {*features(run, "frame@fold-1")} == {*FACES, *PLAIN}


def test_openfaces_crops_may_stand_beside_whole_frames(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "own")
    for name in FACES[:2]:
        crop = np.full((5, 112, 112, 3), 200, np.uint8)
        (tmp_path / "own" / "faces" / name).mkdir(parents=True)
        np.save(tmp_path / "own" / "faces" / name / f"{name}.npy", crop)
    run = made(job(tmp_path / "own", tmp_path / "of", faces="openface"))
    rows = {row.name: row for row in shard_index.read(run.shards)}
    reader = Reader(run.shards)
    shown = reader.read(rows["f0"].of_view(FACE), "video").images()
    assert (shown > 190).all() and rows["f0"].of_view(FRAME).frames == 4
    assert not (reader.read(rows["f0"].of_view(FRAME), "video").images() > 190).all()
    # A video that cannot be read costs the whole frames alone.
    (tmp_path / "own" / "f1.mp4").write_bytes(b"no video")
    clip = next(one for one in corpus_clips(load(tmp_path / "of" / "job.yaml").corpus)[0] if one.name == "f1")
    decoded = decode(clip, load(tmp_path / "of" / "job.yaml").shard)
    assert len(decoded.frames) == 4 and not decoded.whole
    assert "the faces of OpenFace alone are stored" in decoded.problems[0].reason


def test_members_of_a_view():
    members = dict.fromkeys([*suffixes(FACE, 2), *suffixes(FRAME, 101), "flac", "json"], 0)
    assert [*of_view(members, FACE)] == ["00.jpg", "01.jpg", "flac", "json"]
    own = [*of_view(members, FRAME)]
    assert own[0] == "frame.000.jpg" and own[100:] == ["frame.100.jpg", "flac", "json"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"views": "[face]"},
            "extractors.frame.view is frame, and shard.views, the pictures that are stored",
        ),
        ({"views": "[frame]"}, r"shard.views is \['frame'\]; it must be \[face\] or \[face, frame\]"),
        ({"faces": "none"}, "with shard.faces: none both are the whole frame"),
        ({"own": "face side"}, "view is 'side'; it must be one of: face, frame"),
    ],
)
def test_views_that_are_not_there_are_refused_in_a_line(tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        job(tmp_path, tmp_path / "refused", **options)
