"""Baichuan's tokenizer: sentencepiece over ``tokenizer.model``, with the official special cases."""

from __future__ import annotations

import io
import re
from pathlib import Path

import sentencepiece
import torch

from mer_dist.core.errors import UserError
from mer_dist.storage.files import write_bytes, write_json

#: In a text these are single tokens; plain sentencepiece would split them.
SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}
PAD = 0
_SPLIT = re.compile("(" + "|".join(re.escape(text) for text in SPECIAL) + ")")


class BaichuanTokenizer:
    """Text to ids, without BOS or EOS, padded on the right with id 0, as in the official tokenizer."""

    def __init__(self, model_proto: bytes):
        self.model_proto = model_proto
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model_proto)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> BaichuanTokenizer:
        path = Path(folder) / "tokenizer.model"
        try:
            return cls(path.read_bytes())
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path}: no readable sentencepiece model ({error})") from None

    @classmethod
    def train(cls, lines: list[str], vocab_size: int) -> BaichuanTokenizer:
        """A new tokenizer of Baichuan's kind (BPE, byte fallback) from ``lines``."""
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="nmt_nfkc",
            remove_extra_whitespaces=False,
            character_coverage=1.0,
            hard_vocab_limit=False,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
        return cls(model.getvalue())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``tokenizer.model`` and the two json files of the published layout."""
        folder = Path(folder)
        write_bytes(folder / "tokenizer.model", self.model_proto)
        names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
        write_json(folder / "special_tokens_map.json", names)
        settings = {
            "tokenizer_class": "BaichuanTokenizer",
            "add_bos_token": False,
            "add_eos_token": False,
            **names,
        }
        write_json(folder / "tokenizer_config.json", settings)

    def __len__(self) -> int:
        return self.pieces.get_piece_size()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in _SPLIT.split(text):
            if part in SPECIAL:
                ids.append(SPECIAL[part])
            elif part:
                ids.extend(self.pieces.encode(part))
        return ids

    def decode(self, ids: list[int]) -> str:
        return self.pieces.decode([int(item) for item in ids])

    @staticmethod
    def pad(batch: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """``input_ids`` and ``attention_mask``, both (B, longest) int64, padded on the right."""
        longest = max(map(len, batch))
        ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
        return ids, mask
