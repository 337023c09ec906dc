"""Baichuan over the transcript of a clip: the sum of the last four hidden states of each token."""

from __future__ import annotations

import torch

from mer_dist.models import auto
from mer_dist.models.baichuan_family import BAICHUAN
from mer_dist.models.extractor import Extractor, Unusable, packed, packing
from mer_dist.models.tokenizer import BaichuanTokenizer


class BaichuanExtractor(Extractor):
    family = BAICHUAN
    unit = "tokens"
    lora_targets = ["W_pack"]
    extra_files = ("tokenizer_config.json", "special_tokens_map.json")

    tokenizer: BaichuanTokenizer

    def __init__(self, config, backbone, folder=None):
        super().__init__(config, backbone, folder)
        #: clip -> tokens of its transcript, for those longer than ``max_tokens``.
        self.cut: dict[str, int] = {}

    def read_preprocessing(self, folder) -> None:
        self.tokenizer = BaichuanTokenizer.from_pretrained(folder)

    @staticmethod
    def backbone_class(folder):
        from mer_dist.models.baichuan import BaichuanModel

        return BaichuanModel

    @property
    def width(self) -> int:
        return self.backbone.config.hidden_size

    def cost(self, row) -> int:
        return min(len(self.tokenizer.encode(row.transcript or "")), self.config.max_tokens)

    def prepare(self, sample) -> list[list[int]]:
        """The token ids."""
        ids = self.tokenizer.encode(sample.transcript or "")
        if not ids:
            raise Unusable("the transcript has no token")
        if len(ids) > self.config.max_tokens:
            self.cut[sample.name] = len(ids)
        return [ids[: self.config.max_tokens]]

    def length(self, segment: list[int]) -> int:
        return len(segment)

    def note(self) -> str:
        if not self.cut:
            return ""
        return (
            f"{len(self.cut)} transcripts were longer than max_tokens {self.config.max_tokens} and "
            f"were cut, the longest had {max(self.cut.values())}"
        )

    def collate(self, segments: list[list[int]]) -> dict[str, torch.Tensor]:
        ids, mask = self.tokenizer.pad(segments)
        return {"ids": ids, **packing(mask)}

    def dummy_batch(self, segments: int) -> dict[str, torch.Tensor]:
        ids = torch.zeros(segments, self.config.max_tokens, dtype=torch.long)
        return {"ids": ids, **packing(torch.ones_like(ids))}

    def embed(
        self, ids: torch.Tensor, lengths: torch.Tensor, real: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``ids`` (P, L), padded on the right, where no earlier token sees the padding."""
        out = self.backbone(input_ids=ids, output_hidden_states=4, use_cache=False)
        return packed(auto.summed(out), real), lengths
