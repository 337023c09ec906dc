"""What is refused before any model is loaded."""

from __future__ import annotations

import pytest

from mer_dist.dist.runtime import accelerator
from mer_dist.errors import UserError


def test_a_tracker_that_is_not_installed_is_refused_not_left_out(tmp_path):
    with pytest.raises(UserError, match="no_such_tracker, which is not installed"):
        accelerator("fp32", ["no_such_tracker"], tmp_path, threads=1)
