"""The clips that the page shows: which, with what pictures and sound, and that no damage stops the page."""

from __future__ import annotations

import base64
import html
import io
import re
import shutil
from dataclasses import replace

import cv2
import fake_run
import numpy as np
import pytest
import soundfile
from browser import at_widths

from mer_dist import cli
from mer_dist.config import config
from mer_dist.config.section import with_values
from mer_dist.core.errors import UserError
from mer_dist.fusion import predictions, teachers
from mer_dist.fusion.predictions import Predictions
from mer_dist.fusion.teachers import Teacher
from mer_dist.report.clip_choice import ERRORS, MODALITIES, TEACHERS, UNCERTAIN, Judged, choose
from mer_dist.report.clip_media import EMBEDDED_SAMPLES
from mer_dist.report.collect import collect
from mer_dist.report.page import report
from mer_dist.shards import shard_index
from mer_dist.shards.encode import flac
from mer_dist.shards.reader import Reader
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run, ShardFolder

CARD = re.compile(r'<article class="clip">.*?</article>', re.DOTALL)


def judged(**changes) -> Judged:
    """Four labelled clips, all of the first of two labels, and four unlabelled ones."""
    first = np.array([0.9, 0.2, 0.4, 0.1, 0.5, 0.9, 0.6, 0.99])
    probability = np.stack([first, 1 - first], 1)
    labeled = np.arange(8) < 4
    row = Predictions(
        title="vote",
        labels=["calm", "angry"],
        names=[f"c{row}" for row in range(8)],
        labeled=labeled,
        fold=np.where(labeled, 0, -1),
        probability=probability,
        answer=probability.argmax(1),
    )
    known = {"row": row, "truth": np.where(labeled, 0, -1), "stored": np.ones(8, bool)}
    return Judged(**(known | {"by_modality": {}, "teachers": []} | changes))


def names(groups: dict) -> dict[str, list[str]]:
    return {kind: [clip.name for clip in clips] for kind, (_, clips) in groups.items()}


def test_errors_are_ordered_by_the_answers_probability_and_doubts_by_entropy():
    groups = choose(judged(), 8)
    assert names(groups) == {ERRORS: ["c3", "c1", "c2"], UNCERTAIN: ["c4", "c6", "c5", "c7"]}
    assert [count for count, _ in groups.values()] == [3, 4]
    first = groups[ERRORS][1][0]
    assert (first.label, first.answer, first.probability) == ("calm", "angry", [0.1, 0.9])
    assert groups[UNCERTAIN][1][0].label is None


def test_modalities_disagree_where_their_labels_differ_the_farthest_apart_first():
    audio = np.array([0.9, 0.9, 0.6, 0.9, 0.5, 0.9, 0.9, 0.8])
    video = np.array([0.9, 0.6, 0.4, 0.1, 0.5, 0.6, 0.2, 0.9])
    by_modality = {name: np.stack([own, 1 - own], 1) for name, own in (("audio", audio), ("video", video))}
    groups = choose(judged(by_modality=by_modality, truth=np.full(8, -1)), 8)
    # c1 and c5 are far apart, too, but give the same label; c6 and c2 come after c3 as their bars are closer.
    assert groups[MODALITIES][0] == 3
    assert names(groups)[MODALITIES] == ["c3", "c2"] and "c6" in names(groups)[UNCERTAIN]
    assert groups[MODALITIES][1][0].by_modality == {"audio": [0.9, pytest.approx(0.1)], "video": [0.1, 0.9]}


def test_the_surest_teacher_against_the_surest_answer_comes_first_and_each_clip_stands_once():
    said = np.full((8, 2), np.nan)
    said[[0, 3, 4, 7]] = [[0.3, 0.7], [0.6, 0.4], [0.9, 0.1], [0.45, 0.55]]
    other = np.full((8, 2), np.nan)
    other[7] = [0.2, 0.8]
    groups = choose(judged(teachers=[Teacher("a", said), Teacher("b", other)]), 9)
    # 0.8 x 0.99 of c7, 0.7 x 0.9 of c0; c3 stands among the errors, and c4 gets the answer that the teacher gives.
    assert groups[TEACHERS][0] == 3 and names(groups)[TEACHERS] == ["c7", "c0"]
    assert [clip.teacher[0] for clip in groups[TEACHERS][1]] == ["b", "a"]


@pytest.mark.parametrize(("most", "shares"), [(0, [0, 0]), (1, [1, 0]), (5, [3, 2]), (100, [3, 4])])
def test_no_more_clips_are_shown_than_are_asked_for(most, shares):
    assert [len(clips) for _, clips in choose(judged(), most).values()] == shares


def test_a_clip_of_which_nothing_is_stored_is_not_chosen():
    groups = choose(judged(stored=~np.isin(np.arange(8), [3, 4])), 8)
    assert names(groups) == {ERRORS: ["c1", "c2"], UNCERTAIN: ["c6", "c5", "c7"]}


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Run:
    run = fake_run.build(tmp_path_factory.mktemp("clips") / "demo-run")
    fake_run.store_media(run)
    return run


@pytest.fixture
def run(stored, tmp_path) -> Run:
    """A copy that a test may damage."""
    shutil.copytree(stored.folder, tmp_path / "demo-run")
    return Run(tmp_path / "demo-run")


def cards(page: str) -> dict[str, str]:
    """Name -> its card."""
    return {html.unescape(re.search("<h4>(.*?)</h4>", card)[1]): card for card in CARD.findall(page)}


def data_of(card: str, kind: str) -> bytes:
    return base64.b64decode(re.search(f'src="data:{kind};base64,([^"]*)"', card)[1])


def write(run: Run, **options) -> str:
    return report(run.folder, **options).read_text("utf-8")


def shards_of_shown(run: Run, **options) -> dict[int, list[str]]:
    data, found = collect(run.folder, **options), {}
    for clip in data.clips.all():
        found.setdefault(data.corpus.shard_of[clip.name], []).append(clip.name)
    return found


@pytest.mark.slow
def test_every_card_has_the_clips_own_pictures_sound_and_probabilities(stored):
    page, data = write(stored), collect(stored.folder)
    found, table = cards(page), predictions.read(stored.vote.predictions)
    assert [*found] == [clip.name for clip in data.clips.all()] and len(found) == 40
    members = {row.name: row for row in shard_index.join(stored.shards, range(7))}
    reader, row_of = Reader(stored.shards), {name: row for row, name in enumerate(table.names)}
    for name, card in found.items():
        row = row_of[name]
        assert data_of(card, "audio/flac") == reader.members(members[name])["flac"]
        if "video" not in members[name].missing:
            strip = cv2.imdecode(np.frombuffer(data_of(card, "image/jpeg"), np.uint8), cv2.IMREAD_COLOR)
            # Four pictures of 112 pixels, with a gap between them.
            assert strip.shape == (112, 460, 3)
            assert abs(strip[:, :112].mean() - fake_run.grey_of(row)) < 2 and strip[:, 113:115].mean() > 240
        answer, sure = table.labels[table.answer[row]], table.probability[row].max()
        assert f"answer <b>{answer}</b> ({100 * sure:.0f} %)" in card
        assert ("no known label" in card) == (not table.labeled[row])
    assert html.escape(f"{fake_run.HOSTILE} 你好") in page and "<script" not in page
    assert "10 of 400 unlabelled clips" not in page and "of 400 unlabelled clips" in page
    errors = [card for card in found.values() if "label <b>" in card]
    assert all(len(re.findall(r'class="p" style="--p:(\d+)%">\1<', card)) >= 6 for card in errors)


@pytest.mark.slow
def test_what_a_clip_lacks_is_said_and_has_no_bar(run):
    def facts(folder: str) -> None:
        files.write_json(run.features(folder) / "set.json", {"modality": "audio"})

    facts("voice")
    data = collect(run.folder)
    assert data.clips.groups[MODALITIES][1][0].by_modality.keys() == {"audio", "face@tuned", "line@tuned"}
    facts("face@all")
    shown = collect(run.folder).clips
    name = shown.groups[ERRORS][1][0].name
    row = predictions.read(run.vote.predictions).names.index(name)
    voice, face = (
        predictions.read(run.linear_probes.predictions(own)).probability[row]
        for own in ("voice", "face@tuned")
    )
    assert shown.groups[ERRORS][1][0].by_modality["audio"] == pytest.approx((voice + face) / 2)

    path = run.shards / "index.parquet"
    rows = [
        row for number in range(7) for row in shard_index.read_rows(ShardFolder(run.shards).record(number))
    ]
    number = next(row.shard for row in rows if row.name == name)
    silent = [
        replace(row, missing=["audio"]) if row.name == name else row for row in rows if row.shard == number
    ]
    shard_index.write_rows(ShardFolder(run.shards).record(number), silent)
    card = cards(write(run))[name]
    assert "no audio" in card and card.count(">–<") == 6 and path.exists()


@pytest.mark.slow
def test_no_shard_is_opened_but_those_of_the_clips(run):
    ((needed, (name,)),) = shards_of_shown(run, clips=1).items()
    for number in {*range(7)} - {needed}:
        ShardFolder(run.shards).tar(number).write_bytes(b"")
        ShardFolder(run.shards).record(number).write_bytes(b"")
    page = write(run, clips=1)
    assert [*cards(page)] == [name] and "data:audio/flac" in page
    assert "cannot be read" not in page and "is damaged" not in page


@pytest.mark.slow
def test_a_damaged_shard_is_named_and_its_clips_stand_without_pictures(run):
    by_shard = shards_of_shown(run)
    changed, short, torn, gone, *whole = sorted(by_shard)
    folder = ShardFolder(run.shards)
    content = bytearray(folder.tar(changed).read_bytes())
    for row in shard_index.read_rows(folder.record(changed)):
        content[row.members["flac"][0] + 60] ^= 1
    folder.tar(changed).write_bytes(content)
    folder.tar(short).write_bytes(folder.tar(short).read_bytes()[:100])
    folder.record(torn).write_bytes(b"PAR1")
    folder.tar(gone).unlink()
    page = write(run)
    found, text = cards(page), html.unescape(page)
    for number in (changed, short):
        assert (
            f"shards/{number:05d}.tar is damaged; not shown of it: {', '.join(sorted(by_shard[number]))}"
            in text
        )
    assert f"shards/{torn:05d}.parquet cannot be read" in text
    with_sound = {name for name, card in found.items() if "<audio" in card}
    assert with_sound == {name for number in whole for name in by_shard[number]}
    lost = 40 - len(with_sound)
    assert f"Not in the shards, and so without pictures and sound: {lost} of the 40 clips below" in text


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["flac", "01.jpg"])
def test_sound_or_pictures_that_were_stored_damaged_cost_their_clip_alone(run, monkeypatch, suffix):
    monkeypatch.setattr("mer_dist.report.clip_media.EMBEDDED_SAMPLES", 800)
    ((number, (name,)),) = shards_of_shown(run, clips=1).items()
    folder, reader = ShardFolder(run.shards), Reader(run.shards)
    rows = shard_index.read_rows(folder.record(number))
    place = next(place for place, row in enumerate(rows) if row.name == name)
    offset, size = rows[place].members[suffix]
    content = bytearray(folder.tar(number).read_bytes())
    content[offset : offset + size] = bytes(size)
    folder.tar(number).write_bytes(content)
    rows[place] = replace(rows[place], checksum=shard_index.checksum(reader.members(rows[place]).items()))
    shard_index.write_rows(folder.record(number), rows)
    page = write(run)
    assert f"shards/{number:05d}.tar is damaged; not shown of it: {name} (" in html.unescape(page)
    assert sum("<audio" in card for card in cards(page).values()) == 39


@pytest.mark.slow
def test_linked_sound_lies_beside_the_page_and_goes_with_it(run):
    page = write(run, sound="link")
    linked = re.findall(r'<audio[^>]* src="([^"]*)"', page)
    assert linked == [f"report_sound/{place:02d}.flac" for place in range(40)]
    row_of = {row.name: row for row in shard_index.join(run.shards, range(7))}
    reader = Reader(run.shards)
    for name, source in zip(cards(page), linked, strict=True):
        assert (run.folder / source).read_bytes() == reader.members(row_of[name])["flac"]
    assert "data:audio" not in page
    page = write(run, sound="none", clips=3)
    assert "<audio" not in page and len(cards(page)) == 3 and not run.report_sound.exists()
    with pytest.raises(UserError, match="report.sound is 'loud'"):
        write(run, sound="loud")
    assert cli.main(["report", str(run.folder), "--clips", "0"]) == 0
    assert "report.clips is 0" in run.report.read_text("utf-8")
    config.save(with_values(config.of_run(run), **{"report.clips": 2, "report.sound": "none"}), run.config)
    page = write(run)
    assert len(cards(page)) == 2 and "<audio" not in page


@pytest.mark.slow
def test_of_long_sound_the_beginning_is_embedded_and_all_of_it_linked(run, monkeypatch):
    monkeypatch.setattr("mer_dist.report.clip_media.EMBEDDED_SAMPLES", 800)
    page = write(run, clips=1)
    (card,) = cards(page).values()
    wave, rate = soundfile.read(io.BytesIO(data_of(card, "audio/flac")), dtype="int16")
    assert (len(wave), rate) == (800, 16_000) and np.abs(wave).max() > 8000
    assert "sound: the first 0 s" in card and EMBEDDED_SAMPLES == 320_000
    write(run, clips=1, sound="link")
    assert soundfile.info(str(run.report_sound / "00.flac")).frames == 1600
    assert flac(wave) == data_of(card, "audio/flac")


@pytest.mark.slow
def test_without_shards_the_clips_stand_with_what_the_models_say(run):
    shutil.rmtree(run.shards)
    page = write(run)
    assert "without pictures and sound: 40 of the 40 clips" in page
    assert "<audio" not in page and "<img" not in page
    assert all('class="p"' in card for card in cards(page).values())
    assert "This page holds" not in page


@pytest.mark.slow
def test_the_row_that_answers_is_shown_and_what_teachers_say_against_it(run):
    table = predictions.read(run.round(1).predictions)
    prior = files.read_json(run.vote.prior) | {"answered_by_row": {"title": table.title}}
    files.write_json(run.vote.prior, prior)
    said = np.full((2, 6), 0.02)
    for own, row in enumerate((5, 300)):
        said[own, (table.answer[row] + 1) % 6] = 0.9
    teachers.write(run, "llm", table.labels, [table.names[row] for row in (5, 300)], said)
    shown = collect(run.folder).clips
    assert shown.title == table.title
    count, clips = shown.groups[TEACHERS]
    assert count == 2 and {clip.name for clip in clips} <= {table.names[5], table.names[300]}
    for clip in clips:
        row = table.names.index(clip.name)
        assert clip.answer == table.labels[table.answer[row]] and clip.teacher[0] == "llm"
    run.teacher("torn").write_bytes(b"PAR1")
    assert "teachers/torn.parquet cannot be read" in html.unescape(write(run))


@pytest.mark.slow
@pytest.mark.parametrize("sound", ["embed", "link"])
def test_a_browser_shows_the_pictures_plays_the_sound_and_needs_no_sideways_scrolling(run, tmp_path, sound):
    pictures = len(re.findall("<img", write(run, sound=sound)))
    for seen in at_widths(run.report, tmp_path / "profile", 1280, 390):
        assert seen["overflow"] == 0
        assert seen["sounds"] == 40 and seen["seconds"] == pytest.approx(0.1, abs=0.02)
        assert seen["pictures"] == [460] * pictures and pictures > 30
