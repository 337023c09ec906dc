"""Facts about the models of sound that transformers knows, without any of them."""

from __future__ import annotations

from dataclasses import replace

from mer_dist.models.family import FAMILIES, SECONDS, asks_for_code
from mer_dist.models.hubert_family import HUBERT


def _refuse(settings: dict) -> str:
    """Why a config with a valid ``model_type`` cannot be used; empty if it can."""
    if settings.get("add_adapter"):
        return "its adapter (add_adapter) changes the number of steps; give the model without it"
    return asks_for_code(settings)


_WAVEFORM = replace(
    HUBERT,
    model_types=(*HUBERT.model_types, "wav2vec2", "wavlm", "data2vec-audio", "unispeech-sat"),
    refuse_settings=_refuse,
    published={},
    extractor="mer_dist.models.audio:AudioExtractor",
)
#: It hears windows of 30 s, whatever the clip.
WHISPER = replace(
    _WAVEFORM,
    model_types=("whisper",),
    longest_segment=lambda config: 30.0,
    extractor="mer_dist.models.spectrogram:WhisperExtractor",
)
#: It hears windows of 10.24 s, ten steps a second.
AST = replace(
    _WAVEFORM,
    model_types=("audio-spectrogram-transformer",),
    longest_segment=lambda config: 10.24,
    typical_clip=lambda config, frames: (1, round(SECONDS * 10)),
    extractor="mer_dist.models.spectrogram:AstExtractor",
)
#: A step of wav2vec2-bert is two columns of a spectrogram; a column sees 400 samples, from 160 after the one before.
TWO_COLUMNS = 560
WAV2VEC2_BERT = replace(
    _WAVEFORM,
    model_types=("wav2vec2-bert",),
    enough=lambda row: row.samples >= TWO_COLUMNS,
    extractor="mer_dist.models.spectrogram:Wav2Vec2BertExtractor",
)
_OWN = (WHISPER, AST, WAV2VEC2_BERT)
AUDIO = replace(
    _WAVEFORM,
    model_types=(*_WAVEFORM.model_types, *(name for own in _OWN for name in own.model_types)),
    by_type={name: own for own in _OWN for name in own.model_types},
)
FAMILIES.add("audio", AUDIO, __name__)
