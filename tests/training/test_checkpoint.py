"""Checkpoints are whole or not used."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum

from mer_dist.core.errors import UserError
from mer_dist.storage import files
from mer_dist.training.checkpoint import ALONE, Checkpoints, Progress, tensors_only, trained_weights, whole


class Alone(SimpleNamespace):
    """What Checkpoints asks of an Accelerator in a process without DeepSpeed."""

    def __init__(self, processes: int = 1):
        state = SimpleNamespace(deepspeed_plugin=None)
        super().__init__(is_main_process=True, process_index=0, num_processes=processes, state=state)

    def wait_for_everyone(self) -> None:
        pass


def pair():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_weights_moments_and_position_come_back(tmp_path):
    model, optimizer = pair()
    checkpoints = Checkpoints(Alone(), tmp_path, "a", keep=1, minutes=0)
    checkpoints.best(1).mkdir(parents=True)
    files.write_marker(checkpoints.best(1), "a", content={})
    told = Progress(step=7, epoch=2, batch=3, loss=1.5, epochs=[{"epoch": 1}], best=(0.5, -1.0), best_epoch=1)
    checkpoints.save(model, optimizer, told)
    other = torch.nn.Linear(3, 2)
    fresh = torch.optim.AdamW(other.parameters(), lr=0.1)
    progress = checkpoints.load(other, fresh)
    assert (progress.step, progress.epoch, progress.batch, progress.loss) == (7, 2, 3, 1.5)
    assert tuple(progress.best) == (0.5, -1.0) and progress.epochs == [{"epoch": 1}]
    assert torch.equal(other.weight, model.weight)
    moments = fresh.state_dict()["state"][0]
    assert torch.equal(moments["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(tmp_path):
    model, optimizer = pair()
    checkpoints = Checkpoints(Alone(), tmp_path, "a", keep=3, minutes=0)
    for step in (1, 2, 3):
        checkpoints.save(model, optimizer, Progress(step=step))
    truncated = tmp_path / "step-00000003" / ALONE
    truncated.write_bytes(truncated.read_bytes()[:-1])
    (tmp_path / "step-00000002" / "complete.json").unlink()
    assert checkpoints.load(model, optimizer).step == 1
    with pytest.raises(UserError, match="not complete"):
        trained_weights(truncated.parent, torch.float32)


def damage(path, how: str) -> None:
    """Change what a file holds and not its size."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if how == "a flipped bit":
        content[middle] ^= 0x40
    else:
        content[middle : middle + 512] = bytes(512)
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["a flipped bit", "a zeroed block"])
def test_a_damaged_checkpoint_of_the_right_size_is_passed_over_for_the_one_before(tmp_path, caplog, how):
    model = torch.nn.Linear(100, 100)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 100)).sum().backward()
    optimizer.step()
    checkpoints = Checkpoints(Alone(), tmp_path, "a", keep=2, minutes=0)
    for step in (1, 2):
        checkpoints.save(model, optimizer, Progress(step=step))
    newest = tmp_path / "step-00000002"
    damage(newest / ALONE, how)
    again = Checkpoints(Alone(), tmp_path, "a", keep=2, minutes=0)
    assert again.load(model, optimizer).step == 1
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"{newest} is damaged ({ALONE} holds other bytes" in line and "\n" not in line
    with pytest.raises(UserError, match=f"step-00000002 is damaged \\({ALONE} holds other bytes"):
        trained_weights(newest, torch.float32)
    # It neither counts as saved nor as one of those that are kept.
    again.save(model, optimizer, Progress(step=2))
    assert Checkpoints(Alone(), tmp_path, "a", keep=2, minutes=0).load(model, optimizer).step == 2
    assert [path.name for path in whole(tmp_path)] == ["step-00000001", "step-00000002"]


def test_torch_itself_reads_a_flipped_bit_without_a_word(tmp_path):
    """Its files hold checksums, which it does not compare; if it does one day, ours can go."""
    path, value = tmp_path / "value.pt", torch.zeros(1000)
    torch.save(value, path)
    damage(path, "a flipped bit")
    assert (torch.load(path, weights_only=True) != value).sum() == 1


def test_a_position_that_was_changed_is_not_gone_on_from(tmp_path):
    model, optimizer = pair()
    checkpoints = Checkpoints(Alone(), tmp_path, "a", keep=2, minutes=0)
    for step in (1, 2):
        checkpoints.save(model, optimizer, Progress(step=step, epoch=3))
    mark = tmp_path / "step-00000002/complete.json"
    mark.write_text(mark.read_text().replace('"epoch": 3', '"epoch": 2'))
    assert checkpoints.load(model, optimizer).step == 1


def test_only_the_newest_stay_and_those_of_another_training_go(tmp_path, caplog):
    model, optimizer = pair()
    Checkpoints(Alone(), tmp_path, "other", keep=2, minutes=0).save(model, optimizer, Progress(step=9))
    checkpoints = Checkpoints(Alone(), tmp_path, "a", keep=2, minutes=0)
    assert checkpoints.load(model, optimizer) is None
    assert "step-00000009 is passed over (it is of another training)" in caplog.text
    for step in (1, 2, 3):
        checkpoints.save(model, optimizer, Progress(step=step))
    assert [path.name for path in whole(tmp_path)] == ["step-00000002", "step-00000003"]


def test_the_weights_of_the_best_epoch_stay_with_the_checkpoint_that_goes_back_to_them(tmp_path):
    model, optimizer = pair()
    checkpoints = Checkpoints(Alone(), tmp_path, "a", keep=1, minutes=0)

    def kept(epoch):
        checkpoints.best(epoch).mkdir()
        files.write_marker(checkpoints.best(epoch), "a", content={})
        checkpoints.forget_best_but(epoch)

    def lying():
        return [path.name for path in sorted(tmp_path.glob("best-*"))]

    kept(1)
    kept(2)
    assert lying() == ["best-0002"]
    checkpoints.save(model, optimizer, Progress(step=1, epoch=3, best_epoch=2))
    # Killed after epoch 4, the training goes back to the checkpoint, whose best epoch is the second.
    kept(3)
    kept(4)
    assert lying() == ["best-0002", "best-0004"]
    again = Checkpoints(Alone(), tmp_path, "a", keep=1, minutes=0)
    assert again.load(model, optimizer).best_epoch == 2
    again.forget_best_but(3)
    assert lying() == ["best-0002"]
    checkpoints.save(model, optimizer, Progress(step=2, epoch=5, best_epoch=4))
    assert lying() == []


def test_the_weights_of_the_best_epoch_of_every_checkpoint_that_is_kept_stay(tmp_path):
    """The newest may prove to be damaged; without them, the one before would lead to nothing."""
    model, optimizer = pair()
    checkpoints = Checkpoints(Alone(), tmp_path, "a", keep=2, minutes=0)
    for epoch in (1, 2, 3):
        checkpoints.best(epoch).mkdir()
        checkpoints.forget_best_but(epoch)
        checkpoints.save(model, optimizer, Progress(step=epoch, epoch=epoch, best_epoch=epoch))
    assert [path.name for path in sorted(tmp_path.glob("best-*"))] == ["best-0002", "best-0003"]


def test_a_step_that_is_saved_is_not_saved_again(tmp_path):
    """A job that is stopped as soon as it goes on: a kill between two renames would lose both."""
    model, optimizer = pair()
    checkpoints = Checkpoints(Alone(), tmp_path, "a", keep=1, minutes=0)
    checkpoints.save(model, optimizer, Progress(step=3))
    before = (tmp_path / "step-00000003").stat()
    checkpoints.save(model, optimizer, Progress(step=3))
    assert (tmp_path / "step-00000003").stat() == before


def test_a_full_disk_is_named_and_the_checkpoint_before_stays(disk, tmp_path):
    disk("size=3m")
    folder = tmp_path / "run"
    checkpoints = Checkpoints(Alone(), folder, "a", keep=2, minutes=0)
    checkpoints.save(*pair(), Progress(step=1))
    model = torch.nn.Linear(1000, 1000)
    with pytest.raises(OSError, match="No space left on device") as caught:
        checkpoints.save(model, torch.optim.AdamW(model.parameters()), Progress(step=2))
    assert caught.value.filename == str(folder / "step-00000002")
    assert [path.name for path in folder.iterdir()] == ["step-00000001"]
    assert checkpoints.load(*pair()).step == 1


def test_what_a_killed_save_left_is_removed_by_the_next(tmp_path):
    model, optimizer = pair()
    (tmp_path / ".step-00000005.tmp").mkdir()
    Checkpoints(Alone(), tmp_path, "a", keep=1, minutes=0).save(model, optimizer, Progress(step=6))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]


class Attribute:
    """Pickled as a call of getattr, as Python before 3.11.4 pickles members of an enum."""

    def __init__(self, owner: type, name: str):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


@pytest.mark.parametrize("planted", [Progress(), Attribute(LossScaler, "__init__")])
def test_nothing_but_tensors_is_read_from_a_checkpoint(tmp_path, planted):
    path = tmp_path / "planted.pt"
    torch.save({"weights": planted}, path)
    with pytest.raises(UserError, match=f"{path}: refused, and nothing of it is run") as refused:
        with tensors_only(path):
            torch.load(path, weights_only=False)
    assert isinstance(refused.value.__cause__, pickle.UnpicklingError)


def test_the_zero_stage_is_read_as_every_python_writes_it(tmp_path):
    path = tmp_path / "stage.pt"
    torch.save([ZeroStageEnum.weights, Attribute(ZeroStageEnum, "weights")], path)
    with tensors_only(path):
        assert torch.load(path, weights_only=False) == [3, 3]
