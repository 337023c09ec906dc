"""Facts about the models of sound that transformers knows and that hear the waveform, without any of them."""

from __future__ import annotations

from dataclasses import replace

from mer_dist.models.family import FAMILIES
from mer_dist.models.hubert_family import HUBERT

AUDIO = replace(
    HUBERT,
    model_types=(*HUBERT.model_types, "wav2vec2", "wavlm", "data2vec-audio", "unispeech-sat"),
    published={},
    extractor="mer_dist.models.audio:AudioExtractor",
)
FAMILIES.add("audio", AUDIO, __name__)
