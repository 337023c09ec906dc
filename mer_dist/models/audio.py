"""Any model of transformers that hears the waveform of a clip: a sum of hidden states of each step."""

from __future__ import annotations

import torch

from mer_dist.models import auto
from mer_dist.models.audio_family import AUDIO
from mer_dist.models.hubert import HubertExtractor


class AudioExtractor(HubertExtractor):
    family = AUDIO
    backbone_class = staticmethod(auto.backbone_class)
    lora_targets = ["all-linear"]

    def __init__(self, config, backbone, folder=None):
        super().__init__(config, backbone, folder)
        #: (P,) real steps of each row of the next pass.
        self._steps: torch.Tensor | None = None
        if backbone.config.model_type == "data2vec-audio":
            # It has several positional convolutions, with norms between them that fill the padding again.
            for layer in backbone.encoder.pos_conv_embed.layers:
                layer.register_forward_hook(self._empty_padding)

    def embed(self, waves, samples, lengths, real, mask=None) -> tuple[torch.Tensor, torch.Tensor]:
        """As HuBERT."""
        self._steps = None if mask is None else lengths
        return super().embed(waves, samples, lengths, real, mask)

    def _empty_padding(self, _: torch.nn.Module, __: tuple, out: torch.Tensor) -> torch.Tensor:
        """``out`` (P, channels, steps)"""
        if self._steps is None:
            return out
        real = torch.arange(out.shape[2], device=out.device) < self._steps[:, None, None]
        return out * real
