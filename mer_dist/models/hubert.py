"""HuBERT over the sound of a clip: the sum of the last four hidden states of each step."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from mer_dist.models import auto
from mer_dist.models.extractor import Extractor, Unusable, packed, packing
from mer_dist.models.hubert_family import HUBERT, RECEPTIVE_FIELD, SAMPLE_RATE
from mer_dist.models.model_folder import read_settings


class HubertExtractor(Extractor):
    family = HUBERT
    unit = "seconds"
    lora_targets = ["q_proj", "k_proj", "v_proj", "out_proj"]
    chooses_layers = True
    # The weight norm of the positional convolution is computed while the model is built, which needs
    # unsplit weights; HuBERT-large is small enough for that.
    sharded_as_it_loads = False

    #: Whether the model was trained on audio of mean 0 and standard deviation 1.
    normalize: bool

    def __init__(self, config, backbone, folder=None):
        super().__init__(config, backbone, folder)
        # Ranks of ZeRO-3 must run the same layers, and the few clips of a fold train better unmasked.
        self.backbone.config.layerdrop = 0.0
        self.backbone.config.apply_spec_augment = False
        # Otherwise the waveform requires a gradient, and LoRA keeps the whole convolutional graph.
        self.backbone.feature_extractor._requires_grad = False
        # data2vec-audio has no such setting: its norms are of layers.
        self.group_norm = getattr(self.backbone.config, "feat_extract_norm", "layer") == "group"
        if self.group_norm:
            first = self.backbone.feature_extractor.conv_layers[0]
            first.layer_norm = RealStepsNorm(first.layer_norm, first.conv)

    def read_preprocessing(self, folder) -> None:
        settings = read_settings(folder, "preprocessor_config.json")
        self.normalize = bool(settings.get("do_normalize", True))

    @staticmethod
    def backbone_class(folder):
        from transformers import HubertModel

        return HubertModel

    @property
    def width(self) -> int:
        return self.backbone.config.hidden_size

    def cost(self, row) -> float:
        return row.samples / SAMPLE_RATE

    def prepare(self, sample) -> list[torch.Tensor]:
        """Windows of at most ``window`` seconds, normalised over the whole clip as in the baseline."""
        wave = sample.waveform()
        if len(wave) < RECEPTIVE_FIELD:
            raise Unusable(f"{len(wave)} audio samples; at least {RECEPTIVE_FIELD} are needed")
        if self.normalize:
            # In numpy as in Wav2Vec2FeatureExtractor, so that the result is bit-identical to it.
            wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
        windows = torch.split(torch.from_numpy(wave), round(self.config.window * SAMPLE_RATE))
        return [window for window in windows if len(window) >= RECEPTIVE_FIELD]

    def length(self, segment: torch.Tensor) -> float:
        return len(segment) / SAMPLE_RATE

    def collate(self, segments: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        samples = torch.tensor([len(segment) for segment in segments])
        steps = self.backbone._get_feat_extract_output_lengths(samples)
        waves = nn.utils.rnn.pad_sequence(segments, batch_first=True)
        batch = {
            "waves": waves,
            "samples": samples,
            **packing(torch.arange(int(steps.max())) < steps[:, None]),
        }
        if samples.min() < waves.shape[1]:
            # Only if needed: without a mask, attention uses a faster kernel.
            batch["mask"] = torch.arange(waves.shape[1]) < samples[:, None]
        return batch

    def dummy_batch(self, segments: int) -> dict[str, torch.Tensor]:
        return self.collate([torch.zeros(round(self.config.window * SAMPLE_RATE))] * segments)

    def embed(
        self,
        waves: torch.Tensor,
        samples: torch.Tensor,
        lengths: torch.Tensor,
        real: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``waves`` (P, S) padded; ``samples`` (P,) real lengths and ``lengths`` (P,) their output steps;
        ``mask`` bool (P, S), True for real samples, None without padding."""
        if self.group_norm:
            self.backbone.feature_extractor.conv_layers[0].layer_norm.samples = samples
        out = self.backbone(
            waves.to(self.backbone.dtype),
            attention_mask=None if mask is None else mask.long(),
            output_hidden_states=True,
        )
        return packed(auto.summed(out, self.layer_sets), real), lengths


class RealStepsNorm(nn.Module):
    """The norm over time of a ``feat_extract_norm: group`` model, over a row's real steps only.

    The published norm includes the padding, so a clip's features would depend on its batch.
    """

    def __init__(self, norm: nn.GroupNorm, conv: nn.Conv1d):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]
        #: (R,) real samples per row of the next pass.
        self.samples: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` (R, channels, steps): each channel of each row to mean 0, standard deviation 1."""
        assert self.samples is not None, "embed() sets them before each pass"
        steps = (self.samples - self.kernel) // self.stride + 1
        real = torch.arange(x.shape[2], device=x.device) < steps[:, None, None]
        wide = x.float()
        mean = (wide * real).sum(2, keepdim=True) / steps[:, None, None]
        variance = ((wide - mean).square() * real).sum(2, keepdim=True) / steps[:, None, None]
        normal = ((wide - mean) * torch.rsqrt(variance + self.eps)).to(x.dtype)
        return normal * self.weight[:, None] + self.bias[:, None]
