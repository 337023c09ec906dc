"""CLIP's vision tower over the frames of a clip: the projected image embedding of each."""

from __future__ import annotations

import numpy as np
import torch

from mer_dist.core.errors import UserError
from mer_dist.models import pixels
from mer_dist.models.clip_family import CLIP
from mer_dist.models.extractor import Extractor, Unusable
from mer_dist.models.model_folder import read_settings


class ClipExtractor(Extractor):
    family = CLIP
    unit = "frames"
    lora_targets = ["q_proj", "k_proj", "v_proj", "out_proj"]

    def __init__(self, config, backbone, folder=None):
        super().__init__(config, backbone, folder)
        #: What the model sees of a frame.
        self.frame = pixels.Frame(size=(self.side, self.side), shorter=self.side)
        #: Mean and standard deviation of a pixel in [0, 1] by channel; read with the model.
        self.mean, self.std = [0.0] * 3, [1.0] * 3
        #: Mean and standard deviation of bytes, cached on the device: sending them waits for a GPU. Not a
        #: buffer, which half-precision training would round.
        self._scale = torch.empty(0)

    def read_preprocessing(self, folder) -> None:
        settings = read_settings(folder, "preprocessor_config.json")
        try:
            self.mean = [float(value) for value in settings["image_mean"]]
            self.std = [float(value) for value in settings["image_std"]]
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{folder}/preprocessor_config.json: image_mean and image_std are not there "
                "as three numbers each; copy or download it again"
            ) from None

    @staticmethod
    def backbone_class(folder):
        from transformers import CLIPVisionModelWithProjection

        return CLIPVisionModelWithProjection

    @property
    def side(self) -> int:
        return self.backbone.config.image_size

    @property
    def width(self) -> int:
        return self.backbone.config.projection_dim

    def cost(self, row) -> int:
        return min(row.frames, self.config.frames or row.frames)

    def prepare(self, sample) -> list[torch.Tensor]:
        """Frames, each ``(3, height, width)`` uint8."""
        images = sample.images(self.config.frames)
        if not len(images):
            raise Unusable("no frame")
        return list(self.resized(images))

    def resized(self, images: np.ndarray) -> torch.Tensor:
        """``(T, H, W, 3)`` to ``(T, 3, height, width)`` uint8, as the preprocessor does."""
        return self.frame.resized(images)

    def length(self, segment: torch.Tensor) -> int:
        return 1

    def collate(self, segments: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"pixels": torch.stack(segments)}

    def dummy_batch(self, segments: int) -> dict[str, torch.Tensor]:
        return self.collate([torch.zeros(3, *self.frame.size, dtype=torch.uint8)] * segments)

    def embed(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``pixels`` (F, 3, side, side) uint8: bytes are sent and become floats on the device."""
        if self._scale.numel() == 0 or self._scale.device != pixels.device:
            scale = torch.tensor([self.mean, self.std])[..., None, None]
            self._scale = (255 * scale).to(pixels.device)
        mean, std = self._scale
        values = pixels.float().sub_(mean).div_(std)
        embedded = self.embedding(values.to(self.backbone.dtype))
        return embedded, torch.ones(len(pixels), dtype=torch.long, device=pixels.device)

    def embedding(self, values: torch.Tensor) -> torch.Tensor:
        """(F, D) of standardised pixels (F, 3, side, side)."""
        return self.backbone(pixel_values=values).image_embeds
