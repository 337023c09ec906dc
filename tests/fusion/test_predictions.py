import numpy as np

from mer_dist.fusion import predictions
from mer_dist.fusion.predictions import Predictions
from mer_dist.storage.run_folder import Run


def make(title="AGT") -> Predictions:
    return Predictions(
        title=title,
        labels=["neutral", "愤怒", 'a "quoted" label'],
        names=["c", "a", "b"],
        labeled=np.array([True, False, True]),
        fold=np.array([1, -1, 0]),
        probability=np.array([[0.2, 0.5, 0.3], [1.0, 0, 0], [0.1, 0.2, 0.7]]),
        answer=np.array([1, 0, 2]),
    )


def test_what_is_written_comes_back_joined_to_its_names(tmp_path):
    made = make("CLIP, fine-tuned — 微调")
    predictions.write(tmp_path / "p.parquet", made)
    loaded = predictions.read(tmp_path / "p.parquet")
    assert (loaded.title, loaded.labels, loaded.names) == (made.title, made.labels, made.names)
    for field in ("labeled", "fold", "probability", "answer"):
        np.testing.assert_array_equal(getattr(loaded, field), getattr(made, field))
    assert loaded.labeled.dtype == bool
    assert loaded.answers() == {"c": "愤怒", "a": "neutral", "b": 'a "quoted" label'}


def test_the_prediction_files_stand_in_the_order_of_the_result_table(tmp_path):
    run = Run(tmp_path)
    written = [
        run.vote.predictions,
        run.round(1).predictions,
        run.round(0).predictions,
        run.linear_probes.predictions("voice"),
        run.linear_probes.predictions("face"),
    ]
    for path in written:
        predictions.write(path, make())
    predictions.write(run.folder / "rounds" / "00" / "other.parquet", make())
    assert predictions.all_of(run) == [written[i] for i in (4, 3, 2, 1, 0)]
    assert predictions.all_of(Run(tmp_path / "empty")) == []
