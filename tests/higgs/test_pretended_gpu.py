"""The micro-step on tensors that pretend to be on a GPU, to see where each operator computes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trainings import PackedCorpus

from higgs_pipe.config.settings import LoraSettings
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs import attention
from higgs_pipe.higgs.batch import PackedBatch, PackedRows
from higgs_pipe.higgs.lora import add_lora
from higgs_pipe.higgs.loss import label_weights
from higgs_pipe.higgs.model import DualLossModel, load_base
from higgs_pipe.higgs.padding import Grid

GPU = torch.device("cuda", 0)


class Devices(TorchDispatchMode):
    """Counts operators, and collects those with tensors on two kinds of device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.between: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        leaves = tree_leaves((args, kwargs, result))
        if len({leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)}) > 1:
            self.between.append(name)
        return result


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Pretend to have a recent GPU, except in the backward pass, which needs a real one."""

    def no_gradients(_: Any, inputs: Any, *__: Any) -> list[torch.Tensor]:
        return [torch.zeros_like(tensor) for tensor in inputs]

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(attention, "find_spec", lambda _: None)  # no FlashAttention 3
    monkeypatch.setattr(torch.autograd, "grad", no_gradients)
    attention.has_varlen.cache_clear()
    yield FakeTensorMode()
    attention.has_varlen.cache_clear()


def moved(model: DualLossModel, mode: FakeTensorMode) -> DualLossModel:
    """The model with all its tensors on the GPU."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    fake: Any = mode.from_tensor(tensor).detach().to(GPU)
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    tensors[name] = (
                        torch.nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                    )
    return model


def padded(corpus: PackedCorpus, model: DualLossModel, mode: FakeTensorMode) -> PackedBatch:
    rows = PackedRows(corpus.train_rows)
    batch = Grid.of_rows(rows.sizes(), 2).collate([rows[0], rows[1]], model.shape, [0, 1])
    return batch._with_each(mode.from_tensor)


@pytest.mark.parametrize("family", ["corpus", "v3_corpus"])
def test_no_operator_of_a_micro_step_copies_from_gpu_to_host(
    request: pytest.FixtureRequest, hopper: FakeTensorMode, family: str
) -> None:
    corpus: PackedCorpus = request.getfixturevalue(family)
    base = load_base(Pretrained("base_model", str(corpus.base)), torch.bfloat16)
    adapted = add_lora(base, LoraSettings(dropout=0.05), seed=0)
    model = DualLossModel(adapted, recomputed_layers=1).train()
    batch = padded(corpus, model, hopper)
    with hopper:
        moved(model, hopper)
        on_gpu = batch.to(GPU)
        weights = label_weights(on_gpu.label_counts(), has_text=model.shape.has_text_loss)
        with Devices() as forward:
            sums, _ = model(on_gpu, weights, predict=False)
        with Devices() as copying:
            batch.to(GPU)
    assert isinstance(sums.objective, FakeTensor)
    assert sums.objective.device == GPU
    assert forward.counts["_varlen_attn"] == 2  # one call per layer
    assert forward.between == []
    assert copying.between  # so that it is known to be seen
