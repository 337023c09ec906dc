"""What the report reads beside the files of a run."""

from __future__ import annotations

import fusion_run
import numpy as np
import pytest

from mer_dist.config.config import save
from mer_dist.config.section import with_values
from mer_dist.report.collect import collect
from mer_dist.storage.run_folder import Run


@pytest.mark.slow
def test_the_report_reads_every_label_file_that_fuse_reads(tmp_path):
    config, _ = fusion_run.make(tmp_path, labeled=12, unlabeled=6)
    label_of = {f"clip_{row:04d}": fusion_run.LABELS[row % 3] for row in range(12)}
    train = {name: {"emo": label} for name, label in label_of.items()}
    np.savez(tmp_path / "label-6way.npz", train_corpus=train)
    (tmp_path / "upper.csv").write_text(
        "Name;Discrete\n" + "".join(f"{name};{label.upper()}\n" for name, label in label_of.items())
    )
    for name in ("label-6way.npz", "upper.csv"):
        config = with_values(config, **{"fuse.labels": str(tmp_path / name)})
        save(config, Run(config.run.folder).config)
        assert collect(config.run.folder).notes == []
