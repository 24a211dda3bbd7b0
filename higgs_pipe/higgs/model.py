"""The native model on packed rows: exact, and without wasted work.

The native modules do the work. The forward passes that connect them are the family's own for packed
rows (:mod:`higgs_pipe.higgs.packed_body`), and the heads run only where there are labels, in chunks
that fit a memory budget.

Outputs and gradients equal the native model's, sample by sample.
"""

from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn

from higgs_pipe.config.settings import Quantization
from higgs_pipe.config.stages import Pretrained
from higgs_pipe.higgs.batch import Labels, PackedBatch, PackedRow
from higgs_pipe.higgs.dropout import draw_by_row
from higgs_pipe.higgs.family import family_of_base, family_of_model
from higgs_pipe.higgs.fused_lora import fuse_lora
from higgs_pipe.higgs.head_loss import HeadLoss, chunked_loss
from higgs_pipe.higgs.loss import LossSums, Predictions, loss_sums
from higgs_pipe.higgs.packed_body import NativeParts
from higgs_pipe.higgs.pretrained import load_weights
from higgs_pipe.higgs.quantization import quantization_options

CPU = torch.device("cpu")
DEFAULT_MAX_LOGITS_MB = 64.0


def load_base(
    pretrained: Pretrained,
    dtype: torch.dtype,
    quantization: Quantization | None = None,
    device: torch.device = CPU,
) -> Any:
    """Load the base with its heads, frozen: on the CPU, or quantized on ``device``.

    Returns:
        The native model.

    Raises:
        UserError: It is of no known family or cannot be loaded, some of its weights (a head's, for
            example) are missing, or it cannot be quantized here.
    """
    family = family_of_base(pretrained)
    if family.check_tensors is not None:
        family.check_tensors(pretrained)
    options = quantization_options(quantization, device, dtype, family.unquantized)
    model = load_weights(
        family.model_class, pretrained, dtype=dtype, **family.load_options, **options
    )
    model.requires_grad_(False)
    return model.eval()


class DualLossModel(nn.Module):
    """The base, with or without an adapter: a packed batch in, its losses out.

    Backbone, heads and loss are all inside its forward.

    Args:
        model: The native model or a ``PeftModel`` of it; it is changed in place and no longer
            generates.
        max_logits_mb: Megabytes for the logits and their gradient; more are computed in chunks.
        recomputed_layers: Number of first layers to recompute in the backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        max_logits_mb: float = DEFAULT_MAX_LOGITS_MB,
        recomputed_layers: int = 0,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.max_logits_mb = max_logits_mb
        self.family = family_of_model(self.native)
        self.shape = self.family.shape_of(self.native.config)
        self.family.packed_forward.replace_in(self.parts)
        self.recomputed_layers = recomputed_layers
        self.body.rounded_matrices = fuse_lora(self.body)
        self.body.position_keys = draw_by_row(self.body, self.family.packed_forward.seen_by)

    @property
    def parts(self) -> NativeParts:
        """The parts of the native model; those that are trained in full are PEFT's."""
        return self.family.parts_of(self.native)

    @property
    def body(self) -> Any:
        """The body of the native model."""
        return self.parts.body

    def place_of_text(self, row: PackedRow, sample: slice) -> slice:
        """Return the place in a row of the first text that a sample speaks."""
        return self.family.place_of_text(row, sample, self.shape)

    @property
    def num_layers(self) -> int:
        """The layers of the body."""
        return self.shape.num_layers

    @property
    def recomputed_layers(self) -> int:
        """The number of first layers to recompute in the backward pass, for less memory."""
        return int(self.body.recomputed_layers)

    @recomputed_layers.setter
    def recomputed_layers(self, number: int) -> None:
        self.body.recomputed_layers = number

    def compile_layers(self) -> None:
        """Compile the parts of each layer before and after attention, at their next call."""
        self.family.packed_forward.compile_in(self.parts)

    @property
    def native(self) -> Any:
        """The Transformers model, with the LoRA layers inside."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def forward(
        self, batch: PackedBatch, label_weights: Tensor | None = None, predict: bool = True
    ) -> tuple[LossSums, Predictions | None]:
        """Compute the loss sums of each sample of the batch, and the predictions.

        Args:
            batch: On the model's device.
            label_weights: (2 + K,), :func:`loss.label_weights` of a whole step. With them only the
                sums' ``objective``, the batch's part of the step's, has a gradient; this is faster,
                because no logits are computed twice. Without them the sums have a gradient.
            predict: Also find the most likely tokens, for accuracies and the log.
        """
        hidden = self.backbone(batch)
        text_weights = audio_weights = None
        if label_weights is not None:
            weights = label_weights.to(torch.promote_types(hidden.dtype, torch.float32))
            text, codebooks, stop = torch.split(weights, [1, len(label_weights) - 2, 1])
            text_weights = text.expand(batch.text.values.shape)
            audio_weights = codebooks + stop * (batch.audio.values == batch.stream_eos)
        text_loss = self.text_loss(hidden, batch.text, text_weights, predict)
        audio_loss = self.audio_loss(hidden, batch.audio, audio_weights, predict)
        predictions = None
        if audio_loss.prediction is not None:
            predictions = Predictions(
                None if text_loss is None else text_loss.prediction,
                (len(batch.text.values), self.shape.vocab_size),
                audio_loss.prediction,
                (*batch.audio.values.shape, self.shape.codebook_size),
            )
        return loss_sums(text_loss, audio_loss, batch), predictions

    def text_loss(
        self, hidden: Tensor, labels: Labels, weights: Tensor | None = None, predict: bool = True
    ) -> HeadLoss | None:
        """Compute the losses of text labels from the body's output (S, H); None without a head."""
        head = self.parts.text_head
        if head is None:
            return None
        num_entries = self.shape.vocab_size
        return self._head_loss(head, num_entries, hidden, labels, weights, predict)

    def audio_loss(
        self, hidden: Tensor, labels: Labels, weights: Tensor | None = None, predict: bool = True
    ) -> HeadLoss:
        """Compute the losses of codes from the body's output (S, H)."""
        head, num_entries = self.parts.audio_head, self.shape.codebook_size
        return self._head_loss(head, num_entries, hidden, labels, weights, predict)

    def _head_loss(
        self,
        head: nn.Module,
        num_entries: int,
        hidden: Tensor,
        labels: Labels,
        weights: Tensor | None,
        predict: bool,
    ) -> HeadLoss:
        return chunked_loss(
            head,
            hidden.index_select(0, labels.predictors),
            labels.values,
            num_entries,
            self.max_logits_mb,
            weights,
            predict,
        )

    def logits(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Return text logits (L, vocabulary) and audio logits (M, K, V), where there are labels."""
        parts, hidden = self.parts, self.backbone(batch)
        text_logits = hidden.new_zeros(0, self.shape.vocab_size)
        if parts.text_head is not None:
            text_logits = parts.text_head(hidden.index_select(0, batch.text.predictors))
        audio_logits = parts.audio_head(hidden.index_select(0, batch.audio.predictors))
        return text_logits, audio_logits.unflatten(-1, (self.shape.num_codebooks, -1))

    def backbone(self, batch: PackedBatch) -> Tensor:
        """Return the body's last hidden states, in the order of the samples: (S, H)."""
        body, layout = self.body, batch.layout
        body.rounded_matrices.refresh()
        body.position_keys.put(layout.dropout_keys, layout.routed, layout.num_text)
        output = body(
            input_ids=batch.input_ids,
            audio_input_ids=batch.audio_input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            layout=layout,
        )
        return cast(Tensor, output.last_hidden_state[0])
