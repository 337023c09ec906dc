"""Any image model of transformers over the frames of a clip: one embedding of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import ChineseCLIPVisionModel
from transformers.models.chinese_clip.modeling_chinese_clip import ChineseCLIPPreTrainedModel

from mer_dist.core.errors import UserError
from mer_dist.models import auto, pixels
from mer_dist.models.clip import ClipExtractor
from mer_dist.models.image_family import ANY_SIZE, CHINESE_CLIP, IMAGE, POOLED, PROJECTED, SIGLIP2, TOWERS
from mer_dist.models.model_folder import read_settings


class ImageExtractor(ClipExtractor):
    family = IMAGE
    lora_targets = ["all-linear"]
    poolings = ("projected", "pooled", "class", "mean")

    def __init__(self, config, backbone, folder=None):
        # What the tower sees: some configurations hold those of words beside those of images.
        self.vision = getattr(backbone.config, "vision_config", backbone.config)
        super().__init__(config, backbone, folder)
        if self.pooling not in self._possible():
            raise UserError(
                f"extractors.*.pooling is {self.pooling!r}; for the model in {self.folder} it is one of "
                f"{', '.join(self._possible())}"
            )

    @classmethod
    def unused_weights(cls, config):
        return () if config.pooling == "pooled" else ("pooler.",)

    def _possible(self) -> tuple[str, ...]:
        """Valid values of ``pooling``, the model's convention first."""
        kind = self.backbone.config.model_type
        if kind in PROJECTED:
            return ("projected", "class", "mean")
        return ("pooled", "mean") if kind in POOLED else ("class", "pooled", "mean")

    @property
    def side(self) -> int:
        """Of a square input."""
        return self.vision.image_size

    @property
    def pooling(self) -> str:
        return self.config.pooling or self._possible()[0]

    def read_preprocessing(self, folder: Path) -> None:
        self.frame, colours = pixels.read(folder, "preprocessor_config.json")
        self.mean, self.std = colours.mean, colours.std
        if self.backbone.config.model_type not in ANY_SIZE:
            self.frame.check(self.side, f"{folder}/preprocessor_config.json")

    @staticmethod
    def backbone_class(folder):
        import transformers

        tower = TOWERS.get(auto.settings_of(folder).model_type)
        return getattr(transformers, tower) if tower else auto.backbone_class(folder)

    @property
    def width(self) -> int:
        return self.backbone.config.projection_dim if self.pooling == "projected" else self.vision.hidden_size

    def embedding(self, values: torch.Tensor) -> torch.Tensor:
        """(F, D) of standardised pixels (F, 3, H, W)."""
        out = self.seen(values)
        if self.pooling == "projected":
            return out.image_embeds
        if self.pooling == "pooled":
            return out.pooler_output
        if self.pooling == "class":
            return out.last_hidden_state[:, 0]
        # Beside the patches there are the class token and registers, in front.
        kind = self.backbone.config.model_type
        others = 0 if kind in POOLED else 1 + getattr(self.vision, "num_register_tokens", 0)
        return out.last_hidden_state[:, others:].mean(1)

    def seen(self, values: torch.Tensor):
        """The model's output."""
        return self.backbone(pixel_values=values)


class Siglip2Extractor(ImageExtractor):
    """SigLIP 2 with variable sizes (NaFlex): a frame keeps its shape, and becomes as many patches as the model takes.

    All frames of a run are of one shape, so there is no padding.
    """

    family = SIGLIP2
    #: Patches of a frame, at most.
    patches = 256

    @property
    def side(self) -> int:
        return int(self.vision.num_patches**0.5) * self.vision.patch_size

    def read_preprocessing(self, folder: Path) -> None:
        settings = read_settings(folder, "preprocessor_config.json")
        try:
            colours = pixels.Colours.of(settings)
            self.patches, self.mode = (
                int(settings["max_num_patches"]),
                pixels.MODES[int(settings["resample"])],
            )
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{folder}/preprocessor_config.json: max_num_patches, resample, image_mean and image_std are not there as "
                "transformers writes them; copy or download it again"
            ) from None
        self.mean, self.std = colours.mean, colours.std

    def resized(self, images: np.ndarray) -> torch.Tensor:
        from transformers.models.siglip2.image_processing_pil_siglip2 import (
            get_image_size_for_max_num_patches,
        )

        frames = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        target = get_image_size_for_max_num_patches(*frames.shape[-2:], self.vision.patch_size, self.patches)
        return pixels.scaled(frames, target, self.mode).contiguous()

    def seen(self, values: torch.Tensor):
        side = self.vision.patch_size
        down, across = values.shape[2] // side, values.shape[3] // side
        patches = values.reshape(len(values), 3, down, side, across, side)
        patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(len(values), down * across, -1)
        # The model reads them one by one on the host; a tensor would wait for a GPU.
        shapes: Any = np.array([[down, across]] * len(values))
        return self.backbone(pixel_values=patches, pixel_attention_mask=None, spatial_shapes=shapes)


class ChineseClipTower(ChineseCLIPPreTrainedModel):
    """Chinese CLIP without its words. The weights keep the names that they have in the whole model."""

    def __init__(self, config):
        super().__init__(config)
        self.vision_model = ChineseCLIPVisionModel._from_config(config.vision_config)
        self.visual_projection = nn.Linear(
            config.vision_config.hidden_size, config.projection_dim, bias=False
        )
        self.post_init()

    def forward(self, pixel_values, **options):
        out = self.vision_model(pixel_values, **options)
        out["image_embeds"] = self.visual_projection(out.pooler_output)
        return out


class ChineseClipExtractor(ImageExtractor):
    family = CHINESE_CLIP

    @staticmethod
    def backbone_class(folder):
        return ChineseClipTower
