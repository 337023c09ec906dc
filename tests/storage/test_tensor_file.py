"""The header of a safetensors file, read alone."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy

from mer_dist.storage import tensor_file


@pytest.fixture
def path(tmp_path):
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4, dtype=np.int64)}
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors", {"made": "by a test"})
    return tmp_path / "x.safetensors"


def test_each_tensor_lies_where_its_header_says(path):
    found = tensor_file.header(path)
    assert {name: (entry.dtype, entry.shape) for name, entry in found.items()} == {
        "a": ("F32", [2, 3]),
        "b": ("I64", [4]),
    }
    content = path.read_bytes()
    assert np.frombuffer(content, np.float32, 6, found["a"].start).tolist() == [0, 1, 2, 3, 4, 5]
    assert np.frombuffer(content, np.int64, 4, found["b"].start).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_file_that_is_cut_off_or_goes_on_is_refused(path, keep):
    content = path.read_bytes()
    path.write_bytes(content + b"x")
    with pytest.raises(ValueError, match="bytes where its header promises"):
        tensor_file.header(path)
    path.write_bytes(content[:keep])
    with pytest.raises(ValueError, match="no complete safetensors file|bytes where its header promises"):
        tensor_file.header(path)
