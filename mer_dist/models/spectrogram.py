"""Models that hear a spectrogram: Whisper's encoder, wav2vec2-bert and the Audio Spectrogram Transformer.

The spectrogram is that of the model's own preprocessor in transformers. A segment is one window: its
spectrogram ``(L, C)``, and how many of the model's steps are of real sound and not of padding.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperPreTrainedModel

from mer_dist.core.errors import UserError
from mer_dist.models import auto
from mer_dist.models.audio_family import AST, TWO_COLUMNS, WAV2VEC2_BERT, WHISPER
from mer_dist.models.extractor import Extractor, Unusable, packed, packing
from mer_dist.models.hubert_family import RECEPTIVE_FIELD, SAMPLE_RATE

if TYPE_CHECKING:
    from transformers import SequenceFeatureExtractor

Segment = tuple[torch.Tensor, int]


class SpectrogramExtractor(Extractor):
    """What they share."""

    unit = "seconds"
    lora_targets = ["all-linear"]
    chooses_layers = True
    backbone_class = staticmethod(auto.backbone_class)
    #: Name of the preprocessor's class in transformers.
    preprocessor_class: str
    #: Whether the model is told of padding.
    masks_padding = False
    #: Shorter sound has no step.
    least_samples = RECEPTIVE_FIELD

    preprocessor: SequenceFeatureExtractor

    def __init__(self, config, backbone, folder=None):
        super().__init__(config, backbone, folder)
        # Ranks of ZeRO-3 must run the same layers, and the few clips of a fold train better unmasked.
        for name, value in (("layerdrop", 0.0), ("encoder_layerdrop", 0.0), ("apply_spec_augment", False)):
            if hasattr(backbone.config, name):
                setattr(backbone.config, name, value)

    def read_preprocessing(self, folder: Path) -> None:
        import transformers

        kind = getattr(transformers, self.preprocessor_class)
        try:
            self.preprocessor = kind.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{folder}/preprocessor_config.json cannot be read: {reason}") from None
        self.check_preprocessor(folder)

    def check_preprocessor(self, folder: Path) -> None:
        """
        Raises:
            UserError: the preprocessor makes other spectrograms than the model reads.
        """
        settings: Any = self.backbone.config
        made, read = self.preprocessor.num_mel_bins, settings.num_mel_bins
        if made != read:
            raise UserError(
                f"{folder}/preprocessor_config.json: it makes {made} bands of sound, and the model reads {read}; one of "
                "the two is of another model"
            )

    @property
    def width(self) -> int:
        return self.backbone.config.hidden_size

    def cost(self, row) -> float:
        return row.samples / SAMPLE_RATE

    def prepare(self, sample) -> list[Segment]:
        wave = sample.waveform()
        if len(wave) < self.least_samples:
            raise Unusable(f"{len(wave)} audio samples; at least {self.least_samples} are needed")
        return self.windows(wave)

    @abstractmethod
    def windows(self, wave: np.ndarray) -> list[Segment]:
        """The windows of a clip, in time order."""

    def spectrogram(self, waves: list[np.ndarray]) -> dict[str, torch.Tensor]:
        return self.preprocessor(waves, sampling_rate=SAMPLE_RATE, return_tensors="pt")

    def collate(self, segments: list[Segment]) -> dict[str, torch.Tensor]:
        values = nn.utils.rnn.pad_sequence([own for own, _ in segments], batch_first=True)
        steps = torch.tensor([steps for _, steps in segments])
        mask = torch.arange(self.steps_of(values)) < steps[:, None]
        batch = {"values": values, **packing(mask)}
        if self.masks_padding and not mask.all():
            # Only if needed: without a mask, attention uses a faster kernel.
            batch["mask"] = mask
        return batch

    @abstractmethod
    def steps_of(self, values: torch.Tensor) -> int:
        """Number of the model's steps in each row of a batch, padding included."""

    @abstractmethod
    def states(self, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """``(P, steps, D)``; see :meth:`embed`."""

    def embed(self, values, lengths, real, mask=None) -> tuple[torch.Tensor, torch.Tensor]:
        """``values`` (P, L, C) padded; ``lengths`` (P,) real steps; ``real`` their places in all rows; ``mask`` bool
        (P, steps), True for real ones, None without padding."""
        return packed(self.states(values.to(self.backbone.dtype), mask), real), lengths


class FixedWindow(SpectrogramExtractor):
    """A model that hears windows of one length, a shorter one with silence behind it."""

    @property
    @abstractmethod
    def window_samples(self) -> int:
        """Samples of a window."""

    def shape(self, row) -> tuple[int, float]:
        return max(1, -(-row.samples // self.window_samples)), self.window_samples / SAMPLE_RATE

    def cost(self, row) -> float:
        windows, seconds = self.shape(row)
        return windows * seconds

    def length(self, segment: Segment) -> float:
        return self.window_samples / SAMPLE_RATE

    def parts(self, wave: np.ndarray) -> list[np.ndarray]:
        """Parts of one window each; a rest too short for the model is left out."""
        starts = range(0, len(wave), self.window_samples)
        parts = [wave[start : start + self.window_samples] for start in starts]
        return [part for part in parts if len(part) >= self.least_samples]


class WhisperTower(WhisperPreTrainedModel):
    """Whisper without its decoder. The weights keep the names that they have in the whole model."""

    def __init__(self, config):
        super().__init__(config)
        self.encoder = WhisperEncoder(config)
        self.post_init()

    def forward(self, input_features, **options):
        return self.encoder(input_features, **options)


class WhisperExtractor(FixedWindow):
    """One embedding for each 20 ms of sound; those of the silence behind it are left out."""

    family = WHISPER
    preprocessor_class = "WhisperFeatureExtractor"

    #: Samples of one step: two columns of the spectrogram.
    step = 320

    @staticmethod
    def backbone_class(folder):
        return WhisperTower

    @property
    def window_samples(self) -> int:
        return self.backbone.config.max_source_positions * self.step

    def check_preprocessor(self, folder: Path) -> None:
        made = self.preprocessor.feature_size, self.preprocessor.n_samples
        read = self.backbone.config.num_mel_bins, self.window_samples
        if made != read:
            raise UserError(
                f"{folder}/preprocessor_config.json: it makes {made[0]} bands of {made[1] / SAMPLE_RATE:g} s, and the "
                f"model reads {read[0]} of {read[1] / SAMPLE_RATE:g} s; one of the two is of another model"
            )

    def windows(self, wave: np.ndarray) -> list[Segment]:
        parts = self.parts(wave)
        values = self.spectrogram(parts)["input_features"].transpose(1, 2)
        return [(own, -(-len(part) // self.step)) for own, part in zip(values, parts, strict=True)]

    def dummy_batch(self, segments: int) -> dict[str, torch.Tensor]:
        settings = self.backbone.config
        window = torch.zeros(2 * settings.max_source_positions, settings.num_mel_bins)
        return self.collate([(window, settings.max_source_positions)] * segments)

    def steps_of(self, values: torch.Tensor) -> int:
        return values.shape[1] // 2

    def states(self, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        out = self.backbone(values.transpose(1, 2), output_hidden_states=True)
        return auto.summed(out, self.layer_sets)


class AstExtractor(FixedWindow):
    """One embedding for each 100 ms of sound: the mean over the patches of all bands at that time."""

    family = AST
    preprocessor_class = "ASTFeatureExtractor"
    poolings = ("mean", "pooled")

    #: Samples from one column of the spectrogram to the next, and that the first one sees.
    hop, first = 160, 400

    def __init__(self, config, backbone, folder=None):
        super().__init__(config, backbone, folder)
        if self.pooling == "pooled" and config.layers:
            raise UserError("extractors.*.layers: with pooling: pooled the model has no layers to choose")

    @property
    def window_samples(self) -> int:
        return self.first + (self.backbone.config.max_length - 1) * self.hop

    def windows(self, wave: np.ndarray) -> list[Segment]:
        parts = self.parts(wave)
        values = self.spectrogram(parts)["input_values"]
        return [(own, self._patches(len(part))) for own, part in zip(values, parts, strict=True)]

    def check_preprocessor(self, folder: Path) -> None:
        super().check_preprocessor(folder)
        made, read = self.preprocessor.max_length, self.backbone.config.max_length
        if made != read:
            raise UserError(
                f"{folder}/preprocessor_config.json: it makes spectrograms of {made} columns, and the model reads "
                f"{read}; one of the two is of another model"
            )

    def _patches(self, samples: int) -> int:
        """Number of patches in time that lie within the sound; at least one."""
        columns = 1 + (samples - self.first) // self.hop
        return max(1, self._along(columns, self.backbone.config.time_stride))

    def _along(self, length: int, stride: int) -> int:
        return (length - self.backbone.config.patch_size) // stride + 1

    def dummy_batch(self, segments: int) -> dict[str, torch.Tensor]:
        window = torch.zeros(self.backbone.config.max_length, self.backbone.config.num_mel_bins)
        return self.collate([(window, self.steps_of(window[None]))] * segments)

    def steps_of(self, values: torch.Tensor) -> int:
        return self._along(values.shape[1], self.backbone.config.time_stride)

    def states(self, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        settings = self.backbone.config
        out = self.backbone(values, output_hidden_states=True)
        # In front are the class and the distillation token; then the patches, band by band.
        patches = auto.summed(out, self.layer_sets)[:, 2:]
        bands = self._along(settings.num_mel_bins, settings.frequency_stride)
        return patches.unflatten(1, (bands, -1)).mean(1)

    def embed(self, values, lengths, real, mask=None) -> tuple[torch.Tensor, torch.Tensor]:
        if self.pooling == "mean":
            return super().embed(values, lengths, real, mask)
        return self.backbone(values.to(self.backbone.dtype)).pooler_output, torch.ones_like(lengths)


class Wav2Vec2BertExtractor(SpectrogramExtractor):
    """One embedding for each 20 ms of sound. The spectrogram is standardised over the whole clip."""

    family = WAV2VEC2_BERT
    preprocessor_class = "SeamlessM4TFeatureExtractor"
    masks_padding = True
    least_samples = TWO_COLUMNS

    #: Steps a second.
    rate = 50

    def check_preprocessor(self, folder: Path) -> None:
        made = self.preprocessor.num_mel_bins * self.preprocessor.stride
        read = self.backbone.config.feature_projection_input_dim
        if made != read:
            raise UserError(
                f"{folder}/preprocessor_config.json: it makes {made} numbers a step, and the model reads {read}; one of "
                "the two is of another model"
            )

    def windows(self, wave: np.ndarray) -> list[Segment]:
        found = self.spectrogram([wave])
        values = found["input_features"][0, : int(found["attention_mask"].sum())]
        return [(own, len(own)) for own in torch.split(values, round(self.config.window * self.rate))]

    def length(self, segment: Segment) -> float:
        return segment[1] / self.rate

    def dummy_batch(self, segments: int) -> dict[str, torch.Tensor]:
        steps = round(self.config.window * self.rate)
        window = torch.zeros(steps, self.backbone.config.feature_projection_input_dim)
        return self.collate([(window, steps)] * segments)

    def steps_of(self, values: torch.Tensor) -> int:
        return values.shape[1]

    def states(self, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        seen = None if mask is None else mask.long()
        out = self.backbone(values, attention_mask=seen, output_hidden_states=True)
        return auto.summed(out, self.layer_sets)
