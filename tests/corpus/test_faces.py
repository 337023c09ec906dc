"""Where the stored square comes from: a found face, or the middle of the frame."""

import numpy as np
from media_files import drawn_face, write_mp4

from mer_dist.config.sections import ShardConfig
from mer_dist.core.records import Clip
from mer_dist.corpus import faces
from mer_dist.corpus.decode import decode
from mer_dist.shards.shard_index import FACELESS


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


def test_a_clip_without_a_face_is_masked_where_that_is_asked_for_and_counted(tmp_path):
    shown = write_mp4(tmp_path / "a.mp4", np.full((6, 48, 64, 3), 90, np.uint8))
    clip = Clip(name="a", video=shown, audio=None, transcript="x", label=None, split="unlabeled")
    kept, masked, whole = (
        decode(clip, ShardConfig(frames=4, image_size=32, **how))
        for how in ({}, {"faceless": "mask"}, {"faceless": "mask", "faces": "none"})
    )
    assert len(kept.frames) == len(whole.frames) == 4 and FACELESS not in kept.remarks + whole.remarks
    assert masked.frames == [] and "video" in masked.missing and FACELESS in masked.remarks
    assert masked.seconds == kept.seconds and masked.problems == kept.problems
