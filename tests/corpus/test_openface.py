"""Faces that OpenFace cut out: pictures in a folder, or one array of a clip."""

import cv2
import numpy as np
import pytest
from media_files import tone, write_mp4

from mer_dist.config.sections import ShardConfig
from mer_dist.core.records import Clip
from mer_dist.corpus import openface as openface_faces
from mer_dist.corpus import picture
from mer_dist.corpus.convert import source
from mer_dist.corpus.decode import Decoded, decode
from mer_dist.corpus.media import MediaError
from mer_dist.corpus.paths import openface_array, openface_folder


@pytest.fixture
def openface(tmp_path):
    """Ten crops whose brightness tells their order, one of them damaged."""
    folder = openface_folder(tmp_path / "openface", "a")
    folder.mkdir(parents=True)
    for row in range(10):
        image = np.full((112, 112, 3), (20 * row, 0, 0), np.uint8)
        cv2.imwrite(str(folder / f"frame_det_00_{row + 1:06d}.bmp"), image)
    return tmp_path / "openface"


def test_openface_crops_are_taken_evenly_and_in_order_as_rgb(openface):
    crops, several = openface_faces.crops(openface, "a", 5, 64)
    assert [int(crop[..., 2].mean()) for crop in crops] == [20, 60, 100, 140, 180]
    assert all(crop.shape == (64, 64, 3) and crop[..., 0].max() == 0 for crop in crops)
    (openface_folder(openface, "a") / "frame_det_00_000004.bmp").write_bytes(b"no picture")
    assert not several and len(openface_faces.crops(openface, "a", 5, 64)[0]) == 4
    assert openface_faces.crops(openface, "b", 5, 64) == ([], [])


def test_of_several_faces_that_openface_followed_the_one_with_the_most_pictures_is_used_and_told(openface):
    folder = openface_folder(openface, "a")
    for row in range(11):
        cv2.imwrite(str(folder / f"frame_det_01_{row + 1:06d}.bmp"), np.full((9, 9, 3), 255, np.uint8))
    config = ShardConfig(frames=6, image_size=32, faces="openface", openface=str(openface))
    clip = Clip(name="a", video=None, audio=None, transcript="x", label=None, split="unlabeled")
    decoded = decode(clip, config)
    assert [int(crop.mean()) for crop in decoded.frames] == [
        255
    ] * 6 and openface_faces.SEVERAL in decoded.remarks
    for path in sorted(folder.glob("frame_det_01_*"))[:2]:
        path.unlink()
    decoded = decode(clip, config)
    assert len(decoded.frames) == 6 and max(crop[..., 0].max() for crop in decoded.frames) == 0
    assert openface_faces.SEVERAL in decoded.remarks


def test_crops_come_by_their_numbers_and_black_ones_are_told(tmp_path):
    folder = openface_folder(tmp_path, "a")
    folder.mkdir(parents=True)
    for row in range(12):
        cv2.imwrite(str(folder / f"{row}.png"), np.full((9, 9, 3), 20 * row, np.uint8))
    crops, _ = openface_faces.crops(tmp_path, "a", 12, 9)
    assert [int(crop.mean()) for crop in crops] == [20 * row for row in range(12)]
    for path in folder.glob("*.png"):
        cv2.imwrite(str(path), np.zeros((9, 9, 3), np.uint8))
    config = ShardConfig(frames=5, image_size=32, faces="openface", openface=str(tmp_path))
    clip = Clip(name="a", video=None, audio=None, transcript="x", label=None, split="unlabeled")
    assert picture.NEARLY_EMPTY in decode(clip, config).remarks


def test_openface_serves_a_clip_without_video_stream_and_the_frame_one_without_crops(openface, tmp_path):
    config = ShardConfig(frames=5, image_size=32, faces="openface", openface=str(openface))
    silent = write_mp4(tmp_path / "a.mp4", None, tone())
    clip = Clip(name="a", video=silent, audio=None, transcript="x", label=None, split="unlabeled")
    decoded = decode(clip, config)
    assert len(decoded.frames) == 5 and decoded.missing == [] and decoded.face
    shown = write_mp4(tmp_path / "b.mp4", np.full((6, 48, 64, 3), 90, np.uint8))
    clip = Clip(name="b", video=shown, audio=None, transcript="x", label=None, split="unlabeled")
    decoded = decode(clip, config)
    assert len(decoded.frames) == 5 and not decoded.face


def clip_of(tmp_path, video=None) -> Clip:
    return Clip(name="a", video=video, audio=None, transcript="x", label=None, split="unlabeled")


@pytest.fixture
def array(tmp_path):
    """Where the faces of clip a are distributed, below ``tmp_path``."""
    path = openface_array(tmp_path, "a")
    path.parent.mkdir()
    return path


def graded(count: int) -> np.ndarray:
    """Faces whose blue tells their order, BGR."""
    made = np.zeros((count, 112, 112, 3), np.uint8)
    made[..., 0] = 20 * np.arange(count)[:, None, None]
    return made


def test_an_array_of_faces_gives_the_same_as_their_pictures_and_is_preferred(openface, tmp_path):
    of_folder, _ = openface_faces.crops(openface, "a", 5, 64)
    np.save(openface_array(openface, "a"), graded(10))
    of_array, several = openface_faces.crops(openface, "a", 5, 64)
    assert not several and np.array_equal(of_array, of_folder)
    np.save(openface_array(openface, "a"), graded(3))
    assert [int(face[..., 2].mean()) for face in openface_faces.crops(openface, "a", 5, 64)[0]] == [20, 40]


def test_of_a_long_array_only_what_is_taken_is_read(array, tmp_path, monkeypatch):
    np.save(array, graded(4))
    opened = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda *a, **k: opened.append(k) or load(*a, **k))
    openface_faces.crops(tmp_path, "a", 2, 64)
    assert opened == [{"mmap_mode": "r", "allow_pickle": False}]


class Planted:
    def __reduce__(self):
        return print, ("run",)


def written(array, kind: str) -> None:
    if kind == "empty file":
        array.touch()
    elif kind == "truncated":
        np.save(array, graded(4))
        array.write_bytes(array.read_bytes()[:-1000])
    elif kind == "pickle":
        np.save(array, np.array([Planted()], object), allow_pickle=True)
    elif kind == "text":
        array.write_text("version https://git-lfs.github.com/spec/v1")
    else:
        odd = {
            "float32": graded(2).astype(np.float32),
            "no colours": graded(2)[..., 0],
            "colours first": graded(2).transpose(0, 3, 1, 2),
            "one face": graded(1)[0],
            "no pixels": np.zeros((3, 0, 112, 3), np.uint8),
        }
        np.save(array, odd[kind])


BROKEN = (
    "empty file",
    "truncated",
    "pickle",
    "text",
    "float32",
    "no colours",
    "colours first",
    "one face",
    "no pixels",
)


@pytest.mark.parametrize("kind", BROKEN)
def test_an_array_that_is_none_of_faces_is_named_and_nothing_of_it_is_run(array, tmp_path, kind, capsys):
    written(array, kind)
    with pytest.raises(MediaError, match=r"^faces a\.npy: "):
        openface_faces.crops(tmp_path, "a", 4, 32)
    assert capsys.readouterr().out == ""


def decoded(tmp_path, video=None) -> Decoded:
    return decode(
        clip_of(tmp_path, video),
        ShardConfig(frames=4, image_size=32, faces="openface", openface=str(tmp_path)),
    )


@pytest.mark.parametrize("kind", ["truncated", "float32"])
def test_in_the_place_of_broken_faces_the_frames_of_the_video_are_stored_and_the_loss_is_noted(
    array, tmp_path, kind
):
    written(array, kind)
    video = write_mp4(tmp_path / "a.mp4", np.full((6, 48, 64, 3), 90, np.uint8), tone())
    found = decoded(tmp_path, video)
    assert len(found.frames) == 4 and not found.face and found.missing == []
    assert [
        (one.lost, one.reason.endswith("; the frames of its video are stored")) for one in found.problems
    ] == [("part of video", True)]
    alone = decoded(tmp_path)
    assert alone.missing == ["audio", "video"] and [one.lost for one in alone.problems] == ["video"]


def test_black_pictures_of_an_array_are_no_faces_and_told(array, tmp_path):
    faces = graded(20) + 1
    faces[5:] = 0
    np.save(array, faces)
    found, remarks = openface_faces.crops(tmp_path, "a", 4, 32)
    assert len(found) == 4 and min(face.max() for face in found) > 0 and remarks == [openface_faces.BLACK]
    np.save(array, np.zeros((4, 112, 112, 3), np.uint8))
    assert openface_faces.crops(tmp_path, "a", 4, 32) == ([], [openface_faces.BLACK])


def test_upright_pictures_of_an_array_lose_their_ends_and_it_is_told(array, tmp_path):
    np.save(array, graded(4)[:, :, :56] + 1)
    found, remarks = openface_faces.crops(tmp_path, "a", 4, 32)
    assert len(found) == 4 and remarks == [openface_faces.NOT_SQUARE]


def test_an_array_without_a_face_counts_as_none_found(array, tmp_path):
    np.save(array, graded(0))
    video = write_mp4(tmp_path / "a.mp4", np.full((6, 48, 64, 3), 90, np.uint8), tone())
    found = decoded(tmp_path, video)
    assert len(found.frames) == 4 and not found.face and found.problems == []


def measured(
    path, lost: set[int], rows: int = 10, header: str = "frame, face_id, timestamp, confidence, success"
):
    """A table as OpenFace writes it beside the pictures."""
    body = "".join(f"{row}, 0, {row / 25:.3f}, 0.98, {int(row not in lost)}\n" for row in range(1, rows + 1))
    path.write_text(f"{header}\n{body}")


@pytest.mark.parametrize("place", ["a/a.csv", "a.csv"])
def test_pictures_of_lost_faces_are_left_out_and_told(openface, place):
    measured(openface / place, lost={2, 3, 4})
    found, remarks = openface_faces.crops(openface, "a", 10, 16)
    assert [int(crop[..., 2].mean()) for crop in found] == [0, *range(80, 181, 20)]
    assert remarks == [openface_faces.LOST]


def test_a_clip_of_lost_faces_alone_has_no_face(openface, tmp_path):
    measured(openface / "a" / "a.csv", lost={*range(1, 11)})
    config = ShardConfig(frames=4, image_size=32, faces="openface", openface=str(openface))
    found = decode(clip_of(tmp_path, write_mp4(tmp_path / "a.mp4", graded(6)[:, :48, :64] + 9)), config)
    assert len(found.frames) == 4 and not found.face and openface_faces.LOST in found.remarks
    (problem,) = decode(clip_of(tmp_path), config).problems
    assert "no picture of a face" in problem.reason


def test_a_face_that_another_one_outlasts_by_lost_pictures_is_used(openface):
    for row in range(11):
        path = openface_folder(openface, "a") / f"frame_det_01_{row + 1:06d}.bmp"
        cv2.imwrite(str(path), np.full((9, 9, 3), 255, np.uint8))
    rows = [(frame, face, int(face == 0 or frame < 3)) for face in (0, 1) for frame in range(1, 12)]
    body = "".join(f"{frame},{face},{success}\n" for frame, face, success in rows)
    (openface / "a" / "a.csv").write_text(f"frame,face_id,success\n{body}")
    found, remarks = openface_faces.crops(openface, "a", 4, 16)
    assert max(int(crop[..., 0].mean()) for crop in found) == 0
    assert remarks == [openface_faces.SEVERAL, openface_faces.LOST]


@pytest.mark.parametrize(
    "header", ["name, time, sure, other, x", "frame, face_id, timestamp, confidence, right"]
)
def test_a_table_that_is_none_of_openface_changes_nothing(openface, header):
    measured(openface / "a" / "a.csv", lost={1, 2}, header=header)
    assert len(openface_faces.crops(openface, "a", 10, 16)[0]) == 10
    (openface / "a" / "a.csv").write_bytes(b"frame, success\n1\n2, x\n\xff\0, 0\n3, 0\n")
    assert len(openface_faces.crops(openface, "a", 10, 16)[0]) == 9


def test_lost_faces_of_an_array_are_left_out_where_its_table_has_as_many_rows(array, tmp_path):
    np.save(array, graded(8) + 1)
    measured(array.with_suffix(".csv"), lost={1, 2}, rows=8)
    found, remarks = openface_faces.crops(tmp_path, "a", 8, 16)
    assert [int(face[..., 2].mean()) for face in found] == [*range(41, 142, 20)]
    assert remarks == [openface_faces.LOST]
    measured(array.with_suffix(".csv"), lost={1, 2}, rows=9)
    assert len(openface_faces.crops(tmp_path, "a", 8, 16)[0]) == 8


def test_a_table_that_comes_later_makes_the_clip_anew(openface, tmp_path):
    config = ShardConfig(faces="openface", openface=str(openface))
    before = source(clip_of(tmp_path), config)
    measured(openface / "a.csv", lost={1})
    assert source(clip_of(tmp_path), config) != before
