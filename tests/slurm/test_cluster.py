"""On a real Slurm: the job graph, and trainings on two nodes that are disturbed and lose nothing.

Each case is a user at work; two of them work side by side, and the tests look at what came of it.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import killing
import local_slurm
import small_job
import users

from mer_dist.storage import quarantine
from mer_dist.storage.run_folder import Run

pytestmark = pytest.mark.processes


def needs(*cases: str):
    """Says which cases a test looks at, so that no others are begun."""

    def note(test):
        test.cases = cases
        return test

    return note


@pytest.fixture(scope="module")
def cases(request, tmp_path_factory):
    """The cases by name, each a future of what its user saw."""
    local_slurm.needed()
    folder = tmp_path_factory.mktemp("slurm")
    job = small_job.make(folder)
    broken = min((folder / "corpus" / "video-unlabeled-with-test2noise").glob("*.mp4"))
    broken.write_bytes(broken.read_bytes()[:200])
    cluster = local_slurm.Cluster(folder / "cluster", nodes=4)
    try:
        futures: dict[str, Future] = {}
        work = SimpleNamespace(
            cluster=cluster, folder=folder, job=job, seen=lambda name: result(futures[name])
        )
        with ThreadPoolExecutor(2) as pool:
            needed = {name for item in request.session.items for name in getattr(item.function, "cases", ())}
            for case in (
                users.graph,
                users.undisturbed,
                users.requeued,
                users.node_and_rank_lost,
                users.time_limit,
                users.every_stage_interrupted,
                users.by_hand,
            ):
                if case.__name__ in needed:
                    futures[case.__name__] = pool.submit(timed, case, work)
            yield futures
            pool.shutdown(cancel_futures=True)
    finally:
        cluster.down()


def timed(case, work) -> SimpleNamespace:
    started = time.monotonic()
    seen = case(work)
    seen.seconds = time.monotonic() - started
    print(f"{case.__name__}: {seen.seconds:.0f} s")
    return seen


def result(future: Future) -> SimpleNamespace:
    return future.result(timeout=1200)


@needs("undisturbed")
def test_two_nodes_train_one_copy_from_the_sbatch_file(cases):
    seen = result(cases["undisturbed"])
    assert seen.state == "COMPLETED" and any(name.endswith(".safetensors") for name in seen.trained)
    assert (seen.mark["processes"], seen.mark["zero_stage"]) == (2, 3)
    assert seen.nodes == ["n1", "n2"]


@needs("requeued", "undisturbed")
def test_a_training_that_is_requeued_loses_no_step_and_learns_the_same_to_the_bit(cases):
    seen = result(cases["requeued"])
    assert len(seen.stops) == 1 and all(saved == went_on for saved, went_on in seen.stops)
    assert seen.trained == result(cases["undisturbed"]).trained
    assert seen.delay < 60


@needs("requeued")
def test_a_run_whose_jobs_are_queued_is_not_submitted_twice_and_cancelling_leaves_none(cases):
    seen = result(cases["requeued"])
    assert seen.again.returncode == 2 and "still queued" in seen.again.stderr
    row = next(line.split() for line in seen.status.splitlines() if line.startswith("finetune"))
    assert row[1:5] == [seen.jobs["finetune"], "COMPLETED", "1/1", "1"]
    assert seen.jobs["extract"] in seen.cancelled and seen.jobs["finetune"] not in seen.cancelled
    assert seen.left == ""


@pytest.mark.long
@needs("node_and_rank_lost", "undisturbed")
def test_a_training_whose_node_goes_down_starts_again_by_itself_and_goes_on(cases):
    seen = result(cases["node_and_rank_lost"])
    assert seen.restarts == 1
    first, after_node, _ = seen.beginnings
    assert first == 0 < after_node
    assert seen.trained == result(cases["undisturbed"]).trained


@pytest.mark.long
@needs("node_and_rank_lost", "undisturbed")
def test_when_a_rank_is_killed_srun_ends_the_others_the_job_fails_and_the_next_one_goes_on(cases):
    seen = result(cases["node_and_rank_lost"])
    assert sorted(seen.ranks.values()) == ["n3", "n4"]
    assert seen.state == "FAILED" and seen.restarts == 1, "by the node alone"
    assert seen.ended < 60
    _, after_node, after_rank = seen.beginnings
    assert seen.again == "COMPLETED" and after_node <= after_rank
    assert seen.trained == result(cases["undisturbed"]).trained


@pytest.mark.long
@needs("time_limit")
def test_a_training_is_warned_of_its_limit_saves_queues_itself_again_and_goes_on(cases):
    seen = result(cases["time_limit"])
    assert len(seen.stops) == 1 and all(saved == went_on for saved, went_on in seen.stops)
    assert seen.epochs == list(range(1, len(seen.epochs) + 1)), "no epoch twice, none left out"


@pytest.mark.long
@needs("time_limit")
def test_a_cancelled_training_does_not_queue_itself_again(cases):
    seen = result(cases["time_limit"])
    assert seen.state == "CANCELLED" and seen.restarts == 1


@needs("graph")
def test_an_array_task_that_fails_ends_the_graph_and_the_next_submission_does_what_is_missing(cases):
    seen = result(cases["graph"])
    assert seen.first["shard"][2:4] == ["COMPLETED", "1/1"], "a damaged clip, code 3, is no failure"
    assert seen.first["finetune"][2:4] == ["COMPLETED", "1/1"]
    assert "FAILED" in " ".join(seen.first["extract"]) and "2/3" in seen.first["extract"]
    assert "0/1" in seen.first["fuse"] and "0/1" in seen.first["report"], "they must not run"
    assert all("COMPLETED" in row for stage, row in seen.second.items() if stage != "stage")
    assert seen.kept >= {path for path in seen.before if path.suffix == ".safetensors"}
    assert quarantine.read(seen.run.quarantine)
    assert seen.run.answer.exists() and seen.run.report.exists()
    assert seen.verified.returncode == 0, seen.verified.stderr


@needs("graph")
def test_what_submitit_pickles_is_for_the_owner_alone(cases):
    folder = result(cases["graph"]).run.slurm
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.long
@needs("every_stage_interrupted")
def test_a_graph_whose_every_stage_is_warned_or_requeued_goes_on_by_itself_to_the_same_bytes(cases):
    seen = result(cases["every_stage_interrupted"])
    for stage, tasks in (("shard", "1/1"), ("extract", "2/2"), ("fuse", "1/1")):
        assert seen.rows[stage][2:5] == ["COMPLETED", tasks, "1"]
        told = seen.run.log(stage, int(stage == "extract")).read_text("utf-8")
        assert told.count("asked to stop") == 1, f"{stage} was not met at work"
    assert seen.rows["report"][2:4] == ["COMPLETED", "1/1"] and seen.run.report.exists()
    assert differing(seen.run, seen.other) == {"config.yaml"}
    assert seen.run.answer.exists()


def differing(run: Run, other: Run) -> set[str]:
    """Outputs that two runs do not have in common, to the byte."""
    there, expected = (killing.outputs(one.folder) for one in (run, other))
    differ = {path for path in there.keys() | expected.keys() if there.get(path) != expected.get(path)}
    return {path for path in differ if not path.startswith("slurm/")}


@pytest.mark.long
@needs("by_hand", "graph")
def test_extract_and_fuse_from_the_sbatch_files_make_the_bytes_of_the_graph(cases):
    seen = result(cases["by_hand"])
    assert (seen.states["extract"], seen.states["fuse"]) == ("COMPLETED", "COMPLETED")
    assert differing(seen.stages, seen.graph) == {"config.yaml"}
    assert seen.stages.answer.exists() and any(seen.stages.folder.glob("features/*/0*.safetensors"))


@pytest.mark.long
@needs("by_hand", "graph")
def test_the_whole_job_from_its_sbatch_file_makes_the_bytes_of_the_graph(cases):
    seen = result(cases["by_hand"])
    assert seen.states["run"] == "COMPLETED" and seen.whole.report.exists()
    assert differing(seen.whole, seen.graph) == {"config.yaml"}


@pytest.mark.long
@needs("every_stage_interrupted")
def test_no_shard_set_of_features_or_round_that_was_finished_is_made_again(cases):
    seen = result(cases["every_stage_interrupted"])
    for stage, whole in seen.whole.items():
        now = users.pieces(seen.run, stage)
        assert whole and len(whole) < len(now), f"{stage} was not met in the middle"
        assert whole.items() <= now.items()
