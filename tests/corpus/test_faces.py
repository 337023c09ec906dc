"""Where the stored square comes from: a found face, an OpenFace crop, or the middle of the frame."""

import cv2
import numpy as np
import pytest
from media_files import tone, write_mp4

from mer_dist.config.sections import ShardConfig
from mer_dist.core.records import Clip
from mer_dist.corpus import faces, picture
from mer_dist.corpus.decode import decode
from mer_dist.corpus.paths import openface_folder


def drawn_face(x: int, y: int, radius: int = 60, shape=(240, 426)) -> np.ndarray:
    """A face that the cascade takes for one, on a plain ground."""
    image = np.full((*shape, 3), 150, np.uint8)
    cv2.ellipse(image, (x, y), (int(radius * 0.8), radius), 0, 0, 360, (224, 188, 160), -1)
    for side in (-1, 1):
        eye = (x + side * radius * 32 // 100, y - radius // 5)
        cv2.ellipse(image, eye, (radius // 6, radius // 11), 0, 0, 360, (250, 250, 250), -1)
        cv2.circle(image, eye, radius // 13, (30, 20, 20), -1)
        brow = (eye[0], eye[1] - radius // 5)
        cv2.ellipse(image, brow, (radius // 5, radius // 14), 0, 180, 360, (60, 40, 30), 4)
    cv2.line(image, (x, y - radius // 10), (x, y + radius // 5), (190, 150, 125), 4)
    cv2.ellipse(image, (x, y + radius // 2), (radius // 3, radius // 9), 0, 0, 360, (150, 50, 50), -1)
    return cv2.GaussianBlur(image, (5, 5), 0)


def centre_of_mouth(image: np.ndarray) -> tuple[float, float]:
    """Mean x and y, as parts of the side, of the red pixels."""
    red = (image[..., 0].astype(int) - image[..., 1]) > 70
    y, x = np.nonzero(red)
    return x.mean() / image.shape[1], y.mean() / image.shape[0]


def test_the_crop_follows_a_face_that_moves_and_leaves_no_frame_out():
    frames = [drawn_face(110 + 13 * row, 120) for row in range(16)]
    crops, found = faces.cascade(frames, 96)
    assert found and len(crops) == 16 and all(crop.shape == (96, 96, 3) for crop in crops)
    for crop in crops:
        x, y = centre_of_mouth(crop)
        assert 0.4 < x < 0.6 and 0.55 < y < 0.95


def test_a_face_that_is_hidden_for_a_while_keeps_its_place():
    frames = [drawn_face(213, 120) for _ in range(16)]
    hidden = [row for row in range(16) if 3 <= row < 8]
    for row in hidden:
        frames[row] = np.full_like(frames[row], 150)
    # A mark where the face was shows that the box stayed.
    frames[5][115:125, 208:218] = (255, 0, 0)
    crops, found = faces.cascade(frames, 96)
    assert found and all(0.3 < part < 0.7 for part in centre_of_mouth(crops[5]))


def two_faces(left: int, right: int) -> np.ndarray:
    """Faces of these radii at x 110 and 320."""
    return np.concatenate([drawn_face(110, 120, left)[:, :213], drawn_face(107, 120, right)[:, :213]], 1)


def test_of_two_faces_the_larger_one_of_the_first_frame_is_followed_though_the_other_grows():
    frames = [two_faces(60, 40 + 2 * row) for row in range(16)]
    for row in range(16):  # The mouth of the second face is no longer red, so that crops tell which it is.
        frames[row][:, 213:] = frames[row][:, 213:, :1]
    crops, found = faces.cascade(frames, 96)
    assert found and all(0.4 < centre_of_mouth(crop)[0] < 0.6 for crop in crops)
    crops, found = faces.cascade(frames[::-1], 96)
    assert found and not any(((crop[..., 0].astype(int) - crop[..., 1]) > 70).any() for crop in crops)


def test_after_a_cut_the_face_of_the_new_picture_is_found():
    frames = [drawn_face(110, 120)] * 8 + [drawn_face(340, 110, radius=45)] * 8
    crops, found = faces.cascade(frames, 96)
    assert found
    for crop in (*crops[:5], *crops[8:]):
        x, y = centre_of_mouth(crop)
        assert 0.4 < x < 0.6 and 0.55 < y < 0.95


def test_a_clip_without_a_face_gives_whole_frames_and_says_so():
    frames = [np.full((90, 160, 3), 40 * row, np.uint8) for row in range(5)]
    crops, found = faces.cascade(frames, 32)
    assert not found and [int(crop.mean()) for crop in crops] == [0, 40, 80, 120, 160]


def test_the_whole_frame_is_its_central_square():
    frame = np.zeros((90, 160, 3), np.uint8)
    frame[:, 35:125] = 200
    assert (faces.whole(frame, 45) == 200).all()
    assert faces.whole(frame.transpose(1, 0, 2), 45).min() == 200


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
    crops, several = faces.openface(openface, "a", 5, 64)
    assert [int(crop[..., 2].mean()) for crop in crops] == [20, 60, 100, 140, 180]
    assert all(crop.shape == (64, 64, 3) and crop[..., 0].max() == 0 for crop in crops)
    (openface_folder(openface, "a") / "frame_det_00_000004.bmp").write_bytes(b"no picture")
    assert not several and len(faces.openface(openface, "a", 5, 64)[0]) == 4
    assert faces.openface(openface, "b", 5, 64) == ([], False)


def test_of_several_faces_that_openface_followed_the_one_with_the_most_pictures_is_used_and_told(openface):
    folder = openface_folder(openface, "a")
    for row in range(11):
        cv2.imwrite(str(folder / f"frame_det_01_{row + 1:06d}.bmp"), np.full((9, 9, 3), 255, np.uint8))
    config = ShardConfig(frames=6, image_size=32, faces="openface", openface=str(openface))
    clip = Clip(name="a", video=None, audio=None, transcript="x", label=None, split="unlabeled")
    decoded = decode(clip, config)
    assert [int(crop.mean()) for crop in decoded.frames] == [255] * 6 and faces.SEVERAL in decoded.remarks
    for path in sorted(folder.glob("frame_det_01_*"))[:2]:
        path.unlink()
    decoded = decode(clip, config)
    assert len(decoded.frames) == 6 and max(crop[..., 0].max() for crop in decoded.frames) == 0
    assert faces.SEVERAL in decoded.remarks


def test_crops_come_by_their_numbers_and_black_ones_are_told(tmp_path):
    folder = openface_folder(tmp_path, "a")
    folder.mkdir(parents=True)
    for row in range(12):
        cv2.imwrite(str(folder / f"{row}.png"), np.full((9, 9, 3), 20 * row, np.uint8))
    crops, _ = faces.openface(tmp_path, "a", 12, 9)
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
