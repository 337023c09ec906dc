"""HuBERT over the sound of a clip: the sum of the last four hidden states of each step."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mer_dist.models.extractor import (
    Extractor,
    Unusable,
    load_pretrained,
    read_settings,
    sum_of_last_four,
)

SAMPLE_RATE = 16_000
#: Samples that one output step looks at; less audio gives no step at all.
RECEPTIVE_FIELD = 400


class HubertExtractor(Extractor):
    modality = "audio"
    lora_targets = ["q_proj", "k_proj", "v_proj", "out_proj"]
    extra_files = ("preprocessor_config.json",)

    def __init__(self, config, folder, dtype):
        super().__init__(config, folder, dtype)
        settings = read_settings(folder, "preprocessor_config.json")
        self.normalize = bool(settings.get("do_normalize", True))

    def load_backbone(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        from transformers import HubertModel

        return load_pretrained(HubertModel, folder, dtype, self.config.quantize)

    @property
    def width(self) -> int:
        return self.backbone.config.hidden_size

    def cost(self, row) -> int:
        return row.samples

    def prepare(self, sample) -> list[torch.Tensor]:
        """Rows of at most ``window`` seconds, normalised over the whole clip as in the baseline."""
        wave = torch.from_numpy(sample.waveform())
        if len(wave) < RECEPTIVE_FIELD:
            raise Unusable(f"{len(wave)} audio samples; at least {RECEPTIVE_FIELD} are needed")
        if self.normalize:
            wave = (wave - wave.mean()) / torch.sqrt(wave.var(unbiased=False) + 1e-7)
        rows = torch.split(wave, round(self.config.window * SAMPLE_RATE))
        return [row for row in rows if len(row) >= RECEPTIVE_FIELD]

    def collate(self, items: list[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
        rows = [row for item in items for row in item]
        samples = torch.tensor([len(row) for row in rows])
        return {
            "waves": nn.utils.rnn.pad_sequence(rows, batch_first=True),
            "samples": samples,
            "rows": torch.tensor([len(item) for item in items]),
        }

    def vectors(self, waves: torch.Tensor, samples: torch.Tensor, rows: torch.Tensor):
        """``waves`` (R, S) padded; ``samples`` (R,) real lengths; ``rows`` (B,) rows of each clip."""
        mask = torch.arange(waves.shape[1], device=waves.device) < samples[:, None]
        states = self.backbone(
            waves.to(self.backbone.dtype), attention_mask=mask.long(), output_hidden_states=True
        ).hidden_states
        steps = self.backbone._get_feat_extract_output_lengths(samples)
        real = torch.arange(states[-1].shape[1], device=waves.device) < steps[:, None]
        clip_of_row = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), rows)
        lengths = torch.zeros_like(rows).index_add(0, clip_of_row, steps)
        return sum_of_last_four(states)[real], lengths

    def batch_size(self, device: torch.device) -> int:
        # Group norm runs over time, padding included, so a batch would change every clip in it.
        if self.backbone.config.feat_extract_norm == "group":
            return 1
        return super().batch_size(device)

    def batch_rule(self, device: torch.device) -> int:
        return 1 if device.type == "cpu" else 16
