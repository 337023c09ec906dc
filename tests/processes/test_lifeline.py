"""What is said when ranks lose one another, and what is not taken for that."""

from __future__ import annotations

import pytest

from mer_dist.processes.lifeline import lost


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (
            (
                "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:8071. "
                "This is typically caused by a remote worker crashing.\nmore"
            ),
            "has ended",
        ),
        (
            "[gloo/transport/tcp/unbound_buffer.cc:88] Timed out waiting 15000ms for send operation to complete",
            "does not answer (run.timeout_minutes)",
        ),
        (
            "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3) ran for 1800000 ms",
            "does not answer (run.timeout_minutes)",
        ),
        ("NCCL error: remote process exited or there was a network error", "has ended"),
    ],
)
def test_another_rank_that_is_gone_or_stuck_is_told_in_one_line_with_what_was_seen(told, why):
    line = lost(RuntimeError(told))
    assert line.startswith(f"another rank {why}") and told.splitlines()[0] in line and "\n" not in line


@pytest.mark.parametrize(
    "told",
    [
        "NCCL error: invalid usage, Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000",
        "The server socket has failed to listen on any local network address. port: 29500, EADDRINUSE",
        "mat1 and mat2 shapes cannot be multiplied",
        "",
    ],
)
def test_a_fault_of_this_rank_keeps_its_traceback(told):
    assert lost(RuntimeError(told)) == ""
