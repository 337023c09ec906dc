"""Whether the media of a corpus can be read, judged by a sample, of all clips and of each split."""

import pytest

from mer_dist.config.sections import ShardConfig
from mer_dist.core.errors import UserError
from mer_dist.core.records import LABELED, UNLABELED, Clip
from mer_dist.corpus import survey


def clip(name, split, video=None, audio=None) -> Clip:
    return Clip(name=name, video=video, audio=audio, transcript="x", label=None, split=split)


def corpus(labeled: int, unlabeled: int) -> list[Clip]:
    return [
        clip(f"{split}{row:04d}", split, f"{split}{row}.mp4")
        for split, count in ((LABELED, labeled), (UNLABELED, unlabeled))
        for row in range(count)
    ]


def test_each_split_has_its_half_of_a_sample_and_a_small_one_leaves_room_for_the_other():
    def counts(labeled, unlabeled):
        chosen = survey.sample(corpus(labeled, unlabeled), 32)
        return [sum(one.split == split for one in chosen) for split in (LABELED, UNLABELED)]

    assert counts(100, 4000) == [16, 16] and counts(5, 4000) == [5, 27] and counts(3, 4) == [3, 4]
    assert counts(0, 100) == [0, 32] and counts(100, 5) == [27, 5]
    chosen = survey.sample(corpus(0, 320), 32)
    assert [one.name[-4:] for one in chosen][:3] == ["0005", "0015", "0025"]
    assert survey.sample([clip("t", LABELED)], 32) == []


def test_every_way_in_which_a_file_cannot_be_read_is_told(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "good.mp4").write_bytes(b"x")
    (tmp_path / "lost.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "faces" / "f" / "f_aligned").mkdir(parents=True)
    videos = {
        "a": "empty.mp4",
        "b": "good.mp4",
        "c": "lost.mp4",
        "d": "faces",
        "e": "z\0.mp4",
        "f": "none.mp4",
        "g": "y" * 300,
    }
    clips = [clip(name, LABELED, tmp_path / file) for name, file in videos.items()]
    clips += [clip("h", LABELED, tmp_path / "good.mp4", tmp_path / "no.wav"), clip("i", LABELED)]
    found = survey.look(clips, ShardConfig(faces="openface", openface=str(tmp_path / "faces")))
    words = {
        "a": "the file is empty",
        "c": "a link to no file",
        "d": "a folder, not a file",
        "e": "null byte",
        "g": "too long",
        "h": "no.wav: no such file",
    }
    # The pictures of f stand for its video.
    assert found["b"] == found["f"] == [] and "i" not in found
    assert all(len(found[name]) == 1 and word in found[name][0] for name, word in words.items())


def judged(clips, bad, known=(), looked=None):
    lost = {one.name: "why" if bad(one) else None for one in looked or clips}
    survey.refuse(clips, lost, set(known), "all.csv")


def test_next_to_none_is_less_than_a_tenth_of_all_or_of_a_split_of_some_size():
    clips = corpus(20, 200)
    judged(clips, lambda one: one.split == LABELED and one.name[-2:] >= "02")
    with pytest.raises(UserError, match="its labeled clips name can be read: 19 of 20"):
        judged(clips, lambda one: one.split == LABELED and one.name[-2:] >= "01")
    with pytest.raises(UserError, match="it names can be read: 200 of 220"):
        judged(clips, lambda one: one.split == UNLABELED)
    with pytest.raises(UserError, match="1 of 1 clips that were looked at are not, for example why"):
        judged(corpus(1, 0), bool)
    # A handful of clips says nothing of a split.
    judged(corpus(9, 200), lambda one: one.split == LABELED)


def test_clips_that_are_kept_count_as_read():
    clips = corpus(20, 20)
    new = [clips[19], clips[39]]
    judged(clips, bool, {one.name for one in clips} - {one.name for one in new}, new)
    with pytest.raises(UserError, match="it names can be read"):
        judged(clips, bool, {clips[0].name}, clips[1:])
