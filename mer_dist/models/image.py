"""Any image model of transformers over the frames of a clip: one embedding of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mer_dist.core.errors import UserError
from mer_dist.models import auto
from mer_dist.models.clip import ClipExtractor
from mer_dist.models.extractor import Unusable
from mer_dist.models.image_family import IMAGE, POOLED, TOWERS
from mer_dist.models.model_folder import read_settings

#: ``resample`` of a preprocessor, a number of PIL -> torch's name.
MODES = {0: "nearest", 2: "bilinear", 3: "bicubic"}


class ImageExtractor(ClipExtractor):
    family = IMAGE
    lora_targets = ["all-linear"]
    poolings = ("pooled", "class", "mean")
    unused_weights = ("pooler.",)

    #: Height and width of the model's input; a shorter edge to scale to, and whether the centre is cut out.
    size: tuple[int, int]
    shorter: int | None
    mode: str

    def __init__(self, config, backbone, folder=None):
        super().__init__(config, backbone, folder)
        if self.pooling == "class" and backbone.config.model_type in POOLED:
            raise UserError(
                f"extractors.*.pooling is 'class', and the model in {self.folder} has no class token"
            )
        side = backbone.config.image_size
        self.size, self.shorter, self.mode = (side, side), None, "bicubic"

    def read_preprocessing(self, folder: Path) -> None:
        super().read_preprocessing(folder)
        settings = read_settings(folder, "preprocessor_config.json")
        try:
            self.mode = MODES[int(settings.get("resample", 3))]
            size = settings.get("size") or {}
            # Earlier preprocessors state one number.
            size = {"shortest_edge": size} if isinstance(size, int) else size
            self.shorter = int(size["shortest_edge"]) if "shortest_edge" in size else None
            if settings.get("do_center_crop") and settings.get("crop_size"):
                crop = settings["crop_size"]
                crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
                self.size = (int(crop["height"]), int(crop["width"]))
                self.shorter = self.shorter or int(size["height"])
            elif self.shorter is None:
                self.size = (int(size["height"]), int(size["width"]))
            else:
                self.size = (self.shorter, self.shorter)
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{folder}/preprocessor_config.json: size, crop_size and resample are not there as transformers writes "
                "them; copy or download it again"
            ) from None

    @staticmethod
    def backbone_class(folder):
        import transformers

        tower = TOWERS.get(auto.settings_of(folder).model_type)
        return getattr(transformers, tower) if tower else auto.backbone_class(folder)

    @property
    def width(self) -> int:
        return self.backbone.config.hidden_size

    def prepare(self, sample) -> list[torch.Tensor]:
        """Frames, each ``(3, height, width)`` uint8."""
        images = sample.images(self.config.frames)
        if not len(images):
            raise Unusable("no frame")
        return list(self.resized(images))

    def resized(self, images: np.ndarray) -> torch.Tensor:
        """``(T, H, W, 3)`` to ``(T, 3, height, width)`` uint8, as the preprocessor says; torch rounds as its library does."""
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        height, width = pixels.shape[-2:]
        target = self.size
        if self.shorter is not None:
            edge = min(height, width)
            target = (int(height * self.shorter / edge), int(width * self.shorter / edge))
        if (height, width) != target:
            antialias = self.mode != "nearest"
            pixels = F.interpolate(pixels, target, mode=self.mode, antialias=antialias)
        top, left = ((have - want) // 2 for have, want in zip(target, self.size, strict=True))
        return pixels[..., top : top + self.size[0], left : left + self.size[1]].contiguous()

    def dummy_batch(self, segments: int) -> dict[str, torch.Tensor]:
        return self.collate([torch.zeros(3, *self.size, dtype=torch.uint8)] * segments)

    @property
    def pooling(self) -> str:
        """``pooling``; where it is not given, what the model pools itself, or its class token."""
        own = "pooled" if self.backbone.config.model_type in POOLED else "class"
        return self.config.pooling or own

    def embedding(self, values: torch.Tensor) -> torch.Tensor:
        """(F, D) of standardised pixels (F, 3, H, W)."""
        out, settings = self.backbone(pixel_values=values), self.backbone.config
        if self.pooling == "pooled":
            return out.pooler_output
        if self.pooling == "class":
            return out.last_hidden_state[:, 0]
        # Beside the patches there are the class token and registers, in front.
        others = 0 if settings.model_type in POOLED else 1 + getattr(settings, "num_register_tokens", 0)
        return out.last_hidden_state[:, others:].mean(1)
