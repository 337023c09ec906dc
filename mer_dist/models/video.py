"""Models of transformers that see a window of frames at once: one embedding of each window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Encoder, VJEPA2PreTrainedModel

from mer_dist.models import auto, pixels
from mer_dist.models.clip import ClipExtractor
from mer_dist.models.extractor import Unusable
from mer_dist.models.video_family import CLASS_TOKEN, PREPROCESSORS, VIDEO, VJEPA2


class VideoExtractor(ClipExtractor):
    """A segment is a window of as many frames as the model was trained on."""

    family = VIDEO
    backbone_class = staticmethod(auto.backbone_class)
    lora_targets = ["all-linear"]
    poolings: tuple[str, ...] = ("class", "mean")
    extra_files = PREPROCESSORS

    def __init__(self, config, backbone, folder=None):
        super().__init__(config, backbone, folder)
        table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
        if isinstance(table, torch.Tensor) and not isinstance(table, torch.nn.Parameter):
            # VideoMAE's is no part of the module: it would be copied to the device in each pass, and plan cannot trace it.
            del backbone.embeddings.position_embeddings
            table = table.to(next(backbone.parameters()).device)
            backbone.embeddings.register_buffer("position_embeddings", table, persistent=False)
        #: Number of clips with fewer frames than a window.
        self.repeated = 0

    @classmethod
    def unused_weights(cls, config):
        return ("pooler.",)

    @property
    def pooling(self) -> str:
        own = "class" if self.backbone.config.model_type in CLASS_TOKEN else "mean"
        return self.config.pooling or own

    @property
    def width(self) -> int:
        return self.backbone.config.hidden_size

    @property
    def window(self) -> int:
        """Frames of a window."""
        return self.backbone.config.num_frames

    def read_preprocessing(self, folder: Path) -> None:
        name = next(name for name in PREPROCESSORS if (folder / name).is_file())
        self.frame, colours = pixels.read(folder, name)
        self.mean, self.std = colours.mean, colours.std
        self.frame.check(self.side, f"{folder}/{name}")

    def shape(self, row) -> tuple[int, float]:
        return len(windows(super().cost(row), self.window)), self.window

    def cost(self, row) -> int:
        segments, length = self.shape(row)
        return int(segments * length)

    def prepare(self, sample) -> list[torch.Tensor]:
        """Windows, each ``(T, 3, height, width)`` uint8."""
        images = sample.images(self.config.frames)
        if not len(images):
            raise Unusable("no frame")
        self.repeated += len(images) < self.window
        frames = self.frame.resized(images)
        return [frames[places] for places in windows(len(images), self.window)]

    def note(self) -> str:
        if not self.repeated:
            return ""
        return (
            f"{self.repeated} clips have fewer frames than the {self.window} that the model sees at once, so frames "
            "were repeated; shard.frames sets how many are stored"
        )

    def length(self, segment: torch.Tensor) -> int:
        return self.window

    def dummy_batch(self, segments: int) -> dict[str, torch.Tensor]:
        return self.collate([torch.zeros(self.window, 3, *self.frame.size, dtype=torch.uint8)] * segments)

    def embedding(self, values: torch.Tensor) -> torch.Tensor:
        """(P, D) of standardised pixels (P, T, 3, H, W)."""
        states = self.backbone(values).last_hidden_state
        if self.pooling == "class":
            return states[:, 0]
        # In front of the patches is the class token, if there is one.
        return states[:, int(self.backbone.config.model_type in CLASS_TOKEN) :].mean(1)


def windows(frames: int, window: int) -> list[np.ndarray]:
    """Places of the frames of each window: as few windows as show every frame, at even distances; of too few frames one, in
    which they are repeated evenly."""
    if frames < window:
        return [np.arange(window) * frames // window]
    count = -(-frames // window)
    starts = np.linspace(0, frames - window, count).round().astype(int)
    return [np.arange(start, start + window) for start in starts]


class Vjepa2Tower(VJEPA2PreTrainedModel):
    """V-JEPA 2 without its predictor. The weights keep the names that they have in the whole model."""

    def __init__(self, config):
        super().__init__(config)
        self.encoder = VJEPA2Encoder(config)
        self.post_init()

    def forward(self, pixel_values_videos, **options):
        return self.encoder(pixel_values_videos, **options)


class Vjepa2Extractor(VideoExtractor):
    """Its positions are relative, so that a window may have fewer frames than in its training: as many as
    ``frames``, if that is set."""

    family = VJEPA2
    poolings = ("mean",)

    @staticmethod
    def backbone_class(folder):
        return Vjepa2Tower

    @property
    def side(self) -> int:
        return self.backbone.config.crop_size

    @property
    def window(self) -> int:
        trained, tubelet = self.backbone.config.frames_per_clip, self.backbone.config.tubelet_size
        wanted = min(trained, self.config.frames or trained)
        return max(tubelet, wanted // tubelet * tubelet)
