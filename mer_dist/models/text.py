"""Any text model of transformers over the transcript of a clip: a sum of hidden states of each token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mer_dist.core.errors import UserError
from mer_dist.models import auto
from mer_dist.models.extractor import Extractor, Unusable, packed, packing
from mer_dist.models.text_family import DECODERS, TEXT


class TextExtractor(Extractor):
    """Special tokens are seen by the model and left out of the embeddings, as in the challenge's baseline."""

    family = TEXT
    backbone_class = staticmethod(auto.backbone_class)
    unit = "tokens"
    lora_targets = ["all-linear"]
    poolings = ("mean", "first", "last")
    chooses_layers = True
    reads_prompts = True
    #: A tokenizer is in one of these forms, and a decoder's in the first.
    extra_files = (
        "tokenizer.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "spm.model",
        "sentencepiece.bpe.model",
        "tokenizer.model",
    )

    tokenizer: Any

    def __init__(self, config, backbone, folder=None):
        super().__init__(config, backbone, folder)
        #: Number of transcripts longer than the model or ``max_tokens`` allows, and the tokens of the longest.
        self.cut = self.longest_cut = 0
        settings = backbone.config
        # Learned positions end; RoBERTa's begin after its padding token.
        positions = getattr(settings, "max_position_embeddings", None) or config.max_tokens
        offset = (settings.pad_token_id or 0) + 1 if settings.model_type in ("roberta", "xlm-roberta") else 0
        self.longest = min(config.max_tokens, positions - offset)

    @classmethod
    def unused_weights(cls, config):
        return ("pooler.",)

    def read_preprocessing(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # A damaged tokenizer may raise anything.
            raise UserError(
                f"{folder}: its tokenizer cannot be read: {' '.join(str(error).split())[:200]}"
            ) from None
        size = self.backbone.config.vocab_size
        if len(self.tokenizer) > size:
            raise UserError(
                f"{folder}: its tokenizer has {len(self.tokenizer)} tokens, and its model {size}; one of the two is of "
                "another model"
            )
        if self.config.prompt:
            self._check_prompt(folder)

    def _check_prompt(self, folder: Path) -> None:
        if not self.tokenizer.is_fast:
            raise UserError(
                f"{folder}: a prompt needs a tokenizer that tells the places of its tokens; give one with tokenizer.json"
            )
        if (alone := len(self.encoded("")[0])) >= self.longest:
            raise UserError(
                f"extractors.*.prompt has {alone} tokens, and {folder} reads {self.longest} at most (max_tokens, or the "
                "model's own positions)"
            )

    @property
    def width(self) -> int:
        return self.backbone.config.hidden_size

    @property
    def padding(self) -> int:
        """Id of the padding; no token sees it."""
        own = self.backbone.config.pad_token_id
        return own if own is not None and own >= 0 else 0

    def encoded(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids, and 1 for those of the text, 0 for special ones."""
        before, place, after = self.config.prompt.partition("{transcript}")
        found = self.tokenizer(
            before + text + after,
            return_special_tokens_mask=True,
            return_offsets_mapping=bool(place),
            truncation=False,
            verbose=False,
        )
        own = [1 - special for special in found["special_tokens_mask"]]
        if place:
            # A token may reach across an edge of the transcript.
            first, last = len(before), len(before) + len(text)
            own = [
                int(real and begin < last and end > first)
                for real, (begin, end) in zip(own, found["offset_mapping"], strict=True)
            ]
        return found["input_ids"], own

    def cost(self, row) -> int:
        return min(len(self.encoded(row.transcript or "")[0]), self.longest)

    def prepare(self, sample) -> list[tuple[list[int], list[int]]]:
        """The token ids, and which of them are of the text."""
        ids, own = self.encoded(sample.transcript or "")
        if not any(own):
            raise Unusable("the transcript has no token")
        if len(ids) > self.longest:
            self.cut, self.longest_cut = self.cut + 1, max(self.longest_cut, len(ids))
            # Special tokens at the end stay there.
            end = len(own) - own[::-1].index(1)
            keep = end - (len(ids) - self.longest)
            ids, own = ids[:keep] + ids[end:], own[:keep] + own[end:]
        return [(ids, own)]

    def length(self, segment: tuple[list[int], list[int]]) -> int:
        return len(segment[0])

    def note(self) -> str:
        if not self.cut:
            return ""
        return (
            f"{self.cut} transcripts were longer than {self.longest} tokens and were cut, the longest had "
            f"{self.longest_cut}"
        )

    def collate(self, segments: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(ids) for ids, _ in segments)
        ids = torch.full((len(segments), longest), self.padding)
        seen, real = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, (own, of_text) in enumerate(segments):
            ids[row, : len(own)] = torch.tensor(own)
            seen[row, : len(own)] = 1
            real[row, : len(own)] = torch.tensor(of_text)
        return {"ids": ids, "mask": seen, **packing(real)}

    def dummy_batch(self, segments: int) -> dict[str, torch.Tensor]:
        ids = torch.zeros(segments, self.longest, dtype=torch.long)
        return {"ids": ids, "mask": torch.ones_like(ids), **packing(torch.ones_like(ids))}

    def embed(
        self, ids: torch.Tensor, mask: torch.Tensor, lengths: torch.Tensor, real: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``ids`` (P, L), padded on the right; ``mask`` (P, L), 1 for tokens."""
        more = {"use_cache": False} if self.backbone.config.model_type in DECODERS else {}
        out = self.backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True, **more)
        states = auto.summed(out, self.layer_sets)
        if self.pooling == "mean":
            return packed(states, real), lengths
        # ``real`` are the places of the transcript's tokens in all rows, one row after the other.
        row = torch.arange(len(ids), device=ids.device)
        if self.pooling == "last":
            place = real[lengths.cumsum(0) - 1] % ids.shape[1]
        elif self.config.prompt:
            # The first of all is the prompt's, and in a decoder the same for every clip.
            place = real[lengths.cumsum(0) - lengths] % ids.shape[1]
        else:
            place = torch.zeros_like(row)
        return states[row, place], torch.ones_like(lengths)
