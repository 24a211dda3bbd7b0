"""The optimizer and the schedule, by setting."""

import importlib.machinery
import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from higgs_pipe.config.settings import TrainConfig
from higgs_pipe.errors import UserError
from higgs_pipe.training.optimizer import make_optimizer, make_schedule


def rates(**settings: object) -> list[float]:
    """Return the learning rates of ten steps with peak 1, by default with two warmup steps."""
    train = TrainConfig(learning_rate=1.0, **{"warmup_fraction": 0.2} | settings)
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))], train, torch.device("cpu"))
    schedule = make_schedule(optimizer, train, num_steps=10)
    found = []
    for _ in range(10):
        found.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return found


def test_the_learning_rate_warms_up_and_then_follows_the_schedule() -> None:
    eighths = [1 - n / 8 for n in range(8)]
    assert rates(schedule="linear") == pytest.approx([0, 0.5, *eighths])
    assert rates(schedule="constant") == [0, 0.5, *[1] * 8]
    cosine = rates(schedule="cosine")
    assert cosine == rates()
    assert [cosine[n] for n in (0, 1, 2, 6)] == pytest.approx([0, 0.5, 1, 0.5])


@pytest.mark.parametrize(
    ("fraction", "num_steps"), [(0.0, 0), (0.04, 0), (0.14, 1), (0.16, 2), (0.27, 3)]
)
def test_the_warmup_is_rounded_to_whole_steps(fraction: float, num_steps: int) -> None:
    found = rates(schedule="constant", warmup_fraction=fraction)
    assert [rate < 1 for rate in found] == [n < num_steps for n in range(10)]


def test_8_bit_adamw_without_a_gpu_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"adamw_8bit.*CUDA.*train\.optimizer: adamw"):
        make_optimizer([], TrainConfig(optimizer="adamw_8bit"), torch.device("cpu"))


def test_8_bit_adamw_without_bitsandbytes_names_what_to_install() -> None:
    if importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        make_optimizer([], TrainConfig(optimizer="adamw_8bit"), torch.device("cuda"))


def test_8_bit_adamw_gets_learning_rate_and_weight_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    optim = ModuleType("bitsandbytes.optim")
    optim.AdamW8bit = lambda parameters, **settings: settings  # type: ignore[attr-defined]
    package = ModuleType("bitsandbytes")
    package.__spec__ = importlib.machinery.ModuleSpec("bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    train = TrainConfig(optimizer="adamw_8bit", learning_rate=0.5, weight_decay=0.25)
    made: object = make_optimizer([], train, torch.device("cuda"))
    assert made == {"lr": 0.5, "weight_decay": 0.25}
