import html
import json
import re
import shutil

import fake_run
import numpy as np
import pytest
from browser import opened
from sklearn.metrics import f1_score

from mer_dist.core.errors import UserError
from mer_dist.fusion import predictions
from mer_dist.fusion.correction import JUDGES
from mer_dist.report import terms
from mer_dist.report.collect import collect
from mer_dist.report.page import report
from mer_dist.shards import shard_index
from mer_dist.storage import files
from mer_dist.storage.run_folder import Run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    return fake_run.build(tmp_path_factory.mktemp("report") / "demo-run")


@pytest.fixture
def run(finished, tmp_path) -> Run:
    """A copy of the finished run that a test may damage."""
    shutil.copytree(finished.folder, tmp_path / "demo-run")
    return Run(tmp_path / "demo-run")


def text_of(page: str) -> str:
    """What a reader sees, roughly: no style, no tags."""
    without = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", without)))


def written(run: Run) -> str:
    return report(run.folder).read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_real_browser_shows_the_headline_and_runs_nothing_from_a_clip_name(run, tmp_path):
    document = opened(report(run.folder), tmp_path / "profile")
    wanted = f"{100 * files.read_json(run.scores)[-1]['waf']:.2f}"
    assert re.search(r'<strong id="headline">([^<]*)</strong>', document)[1] == wanted
    assert "<title>demo-run – mer_dist report</title>" in document
    assert "<script" not in document
    assert document.count("<svg") >= 2 * (3 + 2 * 2 + 2)


@pytest.mark.slow
def test_the_page_asks_for_nothing_from_outside(run):
    fake_run.store_media(run)
    page = re.sub(r' src="data:(image/jpeg|audio/flac);base64,[\w+/=]+"', "", written(run))
    assert "default-src 'none'" in html.unescape(page)
    urls = set(re.findall(r"(?:https?:)?//[\w.]+[^\s\"'<]*", page))
    assert urls <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(src|srcset|onload|onclick)=|@import|url\(|<link|<iframe", page)


@pytest.mark.slow
def test_names_labels_reasons_and_settings_from_outside_are_escaped(run):
    config = run.config.read_text("utf-8").replace("demo-data", "'</pre><script>x</script>'")
    run.config.write_text(config, encoding="utf-8")
    scores = files.read_json(run.scores)
    for row in scores:
        row["title"] += ' "><script>y</script>'
    files.write_json(run.scores, scores)
    page = written(run)
    assert "<script" not in page and "</pre><" in page
    assert html.escape(fake_run.HOSTILE) in page
    assert "&quot;&gt;&lt;script&gt;y" in page


@pytest.mark.slow
def test_corpus_missing_parts_and_quarantine_are_counted(run):
    text = text_of(written(run))
    assert "240 labelled clips" in text and "400 unlabelled clips" in text
    assert "640 clips in 7 shards" in text
    assert "1 clip could not be used at all; in 4 cases a modality, a part of one or a label was lost" in text
    assert "5 clips with a part in quarantine" in text
    assert "无视频 (no video stream)" in text and "惊讶 surprise" in text
    run_data = collect(run.folder)
    assert run_data.corpus.missing["labeled"] == {"video": 4, "text": 2}
    assert run_data.corpus.labels == fake_run.LABELS


@pytest.mark.slow
def test_remarks_on_the_corpus_are_counted_and_a_few_clips_of_each_named(run):
    stats = files.read_json(run.shards / "stats.json")
    names = [fake_run.HOSTILE, *(f"c{row:02d}" for row in range(11))]
    stats["remarks"] = {
        "sound silent": {"clips": 12, "names": names},
        "several tracks": {"clips": 1, "names": ["only"]},
    }
    files.write_json(run.shards / "stats.json", stats)
    page = written(run)
    text = text_of(page)
    assert f"sound silent 12 {fake_run.HOSTILE}, c00, c01, … several tracks 1 only" in text
    assert "<script" not in page and "c02" not in text
    # Of the statistics below only the counts are shown, as before.
    assert collect(run.folder).stats == {"clips": 640, "bytes": 123456789}


@pytest.mark.slow
def test_without_saved_scores_the_figures_are_computed_out_of_fold(run):
    files.write_json(run.scores, [])
    table = predictions.read(run.vote.predictions)
    truth = collect(run.folder).corpus.truth
    rows = np.flatnonzero(table.labeled)
    wanted = f1_score(
        [truth[table.names[row]] for row in rows],
        [table.labels[table.answer[row]] for row in rows],
        average="weighted",
    )
    page = written(run)
    assert f'<strong id="headline">{100 * wanted:.2f}</strong>' in page
    assert "out of fold on the labelled clips" in text_of(page)
    scores = collect(run.folder).scores
    assert [row.title for row in scores] == [title for _, title, _ in fake_run.ROWS]
    assert all(row.oof_interval[0] < row.oof < row.oof_interval[1] for row in scores)


@pytest.mark.slow
def test_the_confusion_matrix_belongs_to_the_last_predictions(run):
    data = collect(run.folder).confusion
    counts = np.array(data.counts)
    assert data.title == fake_run.ROWS[-1][1] and counts.sum() == 240
    precision = np.diag(counts) / counts.sum(0)
    recall = np.diag(counts) / counts.sum(1)
    waf = (2 * precision * recall / (precision + recall) * counts.sum(1)).sum() / 240
    assert waf == pytest.approx(files.read_json(run.scores)[-1]["oof_waf"])
    shutil.rmtree(run.vote.folder)
    assert collect(run.folder).confusion.title == fake_run.ROWS[-2][1]


@pytest.mark.slow
def test_scores_of_other_predictions_are_left_out_and_named(run):
    scores = files.read_json(run.scores)
    scores[-1]["oof_waf"] = scores[-1]["waf"] = 0.999
    files.write_json(run.scores, scores)
    page = written(run)
    assert "scores.json is of other predictions" in text_of(page)
    assert '<strong id="headline">99.90' not in page


@pytest.mark.slow
def test_a_step_that_does_not_help_is_called_so(run):
    scores = files.read_json(run.scores)
    by_title = {row["title"]: row for row in scores}
    steps = [by_title[title]["waf"] for path, title, _ in fake_run.ROWS if "linear_probes" not in path]
    singles = [by_title[title]["waf"] for path, title, _ in fake_run.ROWS if "linear_probes" in path]
    gains = np.diff([max(singles), *steps])
    text = text_of(written(run))
    for gain in gains:
        shown = f"{100 * gain:+.2f}".replace("-", "−")
        assert (f"{shown} does not help" in text) if gain <= 0 else (shown in text)
    assert (gains <= 0).any() and f"{100 * gains[0]:+.2f} over the best above" in text


@pytest.mark.slow
def test_times_rates_curves_and_the_prior_arrive(run):
    run_data = collect(run.folder)
    rates = {(row.stage, row.part): row.rate for row in run_data.timings}
    assert rates["shard", ""] == pytest.approx(640 / 41.3)
    assert rates["finetune", "face / fold-0"] == pytest.approx(160 / 27.5)
    assert [row.pseudo_labeled for row in run_data.rounds] == [None, 100, 200]
    assert len(run_data.rounds[2].train_loss) == 3 and len(run_data.adapters) == 8
    assert [name for name, _ in run_data.prior.series] == [
        "labelled clips",
        "estimate, EM",
        "estimate, BBSE",
        "tried",
        "answers, unlabelled clips (vote)",
    ]
    assert all(sum(shares) == pytest.approx(1) for _, shares in run_data.prior.series)
    assert run_data.prior.intervals == {
        "estimate, EM": [(0.29, 0.39), (0.1, 0.16), (0.2, 0.28), (0.08, 0.14), (0.09, 0.15), (0.03, 0.09)]
    }
    text = text_of(written(run))
    for term, meaning in terms.PRIOR_TERMS:
        assert f" {term} : {meaning}" in text
    assert {*JUDGES, "answered by"} <= {term for term, _ in terms.PRIOR_TERMS}
    assert (
        "origin: estimate · applied: yes · decided by: gate · reason: EM and BBSE agree within 0.02 · "
        "answered by: expected WAF, as a correction is applied"
    ) in text
    assert "41.3 s" in text and "15.5" in text


STOPPED = {
    "before anything": lambda run: shutil.rmtree(run.folder) or run.folder.mkdir(),
    "after the shards": lambda run: (
        [
            shutil.rmtree(run.folder / name)
            for name in ("adapters", "features", "linear_probes", "rounds", "vote")
        ]
        + [run.scores.unlink(), run.answer.unlink()]
    ),
    "within fine-tuning": lambda run: (
        [
            shutil.rmtree(run.folder / name)
            for name in ("features", "linear_probes", "rounds", "vote", "adapters/line")
        ]
        + [run.scores.unlink(), (run.adapter("face", "all") / files.MARKER).unlink()]
    ),
    "before the vote": lambda run: [shutil.rmtree(run.vote.folder), run.scores.unlink(), run.answer.unlink()],
    "with imported features": lambda run: [
        shutil.rmtree(run.shards),
        run.config.unlink(),
        run.quarantine.unlink(),
        run.scores.unlink(),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("when", STOPPED)
def test_a_run_that_stopped_gives_a_page_that_says_so(run, when):
    STOPPED[when](run)
    page = written(run)
    text = text_of(page)
    assert "Not everything in this run folder" not in text
    if when in ("before anything", "after the shards", "within fine-tuning"):
        assert re.search('<strong id="headline"[^>]*>–</strong>', page)
        assert "No result yet" in text and "There are no scores yet" in text
        assert "No round of fusion has been trained yet" in text
    if when == "before anything":
        assert "No stage has finished yet" in text and "There is no shard index" in text
    if when == "before the vote":
        assert "AGT after self-training, round 2" in text
    if when == "with imported features":
        assert "the truth of no labelled clip is known" in text


@pytest.mark.slow
def test_outside_labellers_are_shown_with_what_they_doubt_and_with_the_doubt_about_them(run):
    page = text_of(written(run))
    assert "What a teacher has seen cannot be known" in page
    assert f"{fake_run.HOSTILE} 180 390 0.61" in page
    assert "1 labelled clip for which a teacher and the models" in page
    assert f"{fake_run.HOSTILE} neutral happy 0.912 {fake_run.HOSTILE}" in page
    run.vote.disputed.write_text("name,label\na,b\n", encoding="utf-8")
    assert "vote/disputed_labels.csv cannot be read" in text_of(written(run))
    told = files.read_json(run.vote.prior)
    del told["teachers"]
    files.write_json(run.vote.prior, told)
    assert "Outside labellers" not in written(run)


@pytest.mark.slow
def test_every_single_file_may_be_torn_and_the_page_names_it(run):
    truncated = [
        "config.yaml",
        "quarantine.parquet",
        "shards/index.parquet",
        "shards/stats.json",
        "adapters/face/fold-1/history.json",
        "rounds/01/curves.json",
        "vote/prior.json",
        "rounds/02/pseudo_labels.parquet",
        "vote/predictions.parquet",
        "scores.json",
    ]
    for name in truncated:
        path = run.folder / name
        # Half of a YAML file may be whole by chance; a zero byte never is.
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] + b"\0")
    run.answer.write_bytes(b"name,discrete\n\xff\xfe")
    text = text_of(written(run))
    for name in truncated:
        # The curves and the selection are two files of one round.
        shown = name if not name.startswith("rounds/") else name.rpartition("/")[0]
        assert f"{shown} cannot be read" in text, name
    assert "answer.csv cannot be read" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "3",
        "null",
        '{"epochs": [3]}',
        '{"epochs": null}',
        '{"folds": 1, "labels": 2}',
        '[{"title": null}]',
    ],
)
def test_a_file_of_another_shape_never_stops_the_page(run, content):
    for path in (
        run.adapter("face", "all") / "history.json",
        run.round(1).curves,
        run.vote.prior,
        run.scores,
        run.shards / "stats.json",
        run.shards / files.MARKER,
    ):
        path.write_text(content)
    assert "</html>" in written(run)


@pytest.mark.slow
def test_a_diverged_training_is_drawn_with_gaps(run):
    path = run.adapter("face", "fold-0") / "history.json"
    history = files.read_json(path)
    history["epochs"][2]["train_loss"] = float("nan")
    history["epochs"][3].update(train_loss=None, validation_loss=float("inf"), validation_waf="?")
    path.write_text(json.dumps(history))
    page = written(run)
    drawn = " ".join(re.findall(r' (?:d|[xy][12]?|c[xy]|width|height)="([^"]*)"', page))
    assert "nan" not in drawn.lower() and "inf" not in drawn.lower()
    assert [
        value is None
        for value in next(
            part for part in collect(run.folder).adapters if part.variant == "fold-0"
        ).train_loss
    ] == [False, False, True, True, False, False]


@pytest.mark.slow
def test_where_nothing_was_held_out_no_curve_is_called_validation(run):
    assert "Validation WAF" in written(run) and "nothing held out" not in written(run)
    for path in (run.folder / "adapters").glob("*/*/history.json"):
        files.write_json(path, files.read_json(path) | {"held_out": 0})
    page = written(run)
    assert "Validation WAF" not in page and "WAF, nothing held out" in page and "after the epoch" in page


@pytest.mark.slow
def test_unlabelled_clips_of_which_nothing_could_be_stored_count_as_they_are_answered(run):
    before = collect(run.folder).corpus
    assert not before.unstored and "could not be stored" not in written(run)
    shard_index.write_unstored(
        run.shards, {"gone_1": "unlabeled", "gone_2": "unlabeled", "gone_3": "labeled"}
    )
    after = collect(run.folder).corpus
    assert after.clips("unlabeled") == before.clips("unlabeled") + 2
    assert after.clips("labeled") == before.clips("labeled")
    assert all(
        after.missing["unlabeled"][part] == before.missing["unlabeled"][part] + 2
        for part in ("audio", "video", "text")
    )
    text = text_of(written(run))
    assert "2 more unlabelled clips could not be stored" in text
    assert "1 labelled clip could not be stored" in text


@pytest.mark.slow
def test_the_page_says_of_how_many_clips_a_score_is_and_which_have_no_answer(run):
    rows = files.read_json(run.scores)
    text = text_of(written(run))
    assert "without an answer" not in text and "On the truth" not in text
    counts = np.arange(36).reshape(6, 6)
    for row in rows:
        row |= {
            "oof_clips": 240,
            "clips": 1657,
            "unanswered": 54,
            "unanswered_names": [fake_run.HOSTILE, "b"],
        }
        row |= {"confusion": counts.tolist()}
    files.write_json(run.scores, rows)
    page = written(run)
    text = text_of(page)
    assert (
        f"54 unlabelled clips without an answer count as wrong in the last row: {fake_run.HOSTILE}, b, …."
    ) in text
    assert "<script" not in page
    assert text.count(" 240 ") >= len(rows) and text.count(" 1,657 ") == len(rows)
    assert "On the truth of the unlabelled clips" in text
    assert f"Vote with the estimated label prior, on {counts.sum()} unlabelled clips" in text
    precision, recall = 28 / counts[:, 4].sum(), 28 / counts[4].sum()
    f1 = 2 * precision * recall / (precision + recall)
    assert f"worried {100 * precision:.1f} {100 * recall:.1f} {100 * f1:.1f}" in text
    files.write_json(run.scores, [row | {"confusion": [[1]]} for row in rows])
    assert "On the truth" not in text_of(written(run))


def test_no_such_folder_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="no such run folder"):
        report(tmp_path / "nowhere")
