"""What the preprocessors of image and video models do to a frame, read from a model folder: sizes and colours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mer_dist.core.errors import UserError
from mer_dist.models.model_folder import read_settings

#: ``resample`` of a preprocessor, a number of PIL -> torch's name.
MODES = {0: "nearest", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True, kw_only=True)
class Colours:
    """A value of a byte ``b`` is ``(b / 255 - mean) / std``, by channel."""

    mean: list[float]
    std: list[float]

    @classmethod
    def of(cls, settings: dict) -> Colours:
        """
        Raises:
            KeyError, TypeError, ValueError: they are not there as transformers writes them.
        """
        mean, std = [0.0] * 3, [1.0] * 3
        if settings.get("do_normalize", True):
            mean = [float(value) for value in settings["image_mean"]]
            std = [float(value) for value in settings["image_std"]]
        if not len(mean) == len(std) == 3 or not all(std):
            raise ValueError(f"image_mean {mean} and image_std {std}")
        # Some scale bytes to other ranges than [0, 1], for example to [-1, 1].
        scale = (
            255 * float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 255
        )
        offset = 1.0 if settings.get("offset") else 0.0
        return cls(mean=[(offset + value) / scale for value in mean], std=[value / scale for value in std])


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Height and width of the model's input; a shorter edge to scale to first, of which the centre is cut out."""

    size: tuple[int, int]
    shorter: int | None = None
    mode: str = "bicubic"

    @classmethod
    def of(cls, settings: dict) -> Frame:
        """
        Raises:
            KeyError, TypeError, ValueError: they are not there as transformers writes them.
        """
        mode = MODES[int(settings.get("resample", 3))]
        size = settings.get("size") or {}
        # Earlier preprocessors state one number.
        size = {"shortest_edge": size} if isinstance(size, int) else size
        shorter = int(size["shortest_edge"]) if "shortest_edge" in size else None
        if settings.get("do_center_crop") and settings.get("crop_size"):
            crop = settings["crop_size"]
            crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
            cut = int(crop["height"]), int(crop["width"])
            return cls(size=cut, shorter=shorter or int(size["height"]), mode=mode)
        if shorter is None:
            return cls(size=(int(size["height"]), int(size["width"])), mode=mode)
        return cls(size=(shorter, shorter), shorter=shorter, mode=mode)

    def check(self, side: int, where: str) -> None:
        """
        Args:
            side: of the square that the model sees.

        Raises:
            UserError: the preprocessor makes another.
        """
        if self.size != (side, side):
            raise UserError(
                f"{where}: it makes pictures of {self.size[0]} x {self.size[1]} pixels, and the model sees {side} x {side}; "
                "one of the two is of another model"
            )

    def resized(self, images: np.ndarray) -> torch.Tensor:
        """``(T, H, W, 3)`` to ``(T, 3, height, width)`` uint8."""
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        target = self.size
        if self.shorter is not None:
            height, width = pixels.shape[-2:]
            edge = min(height, width)
            target = (int(height * self.shorter / edge), int(width * self.shorter / edge))
        pixels = scaled(pixels, target, self.mode)
        top, left = ((have - want) // 2 for have, want in zip(target, self.size, strict=True))
        return pixels[..., top : top + self.size[0], left : left + self.size[1]].contiguous()


def scaled(pixels: torch.Tensor, target: tuple[int, int], mode: str) -> torch.Tensor:
    """``(T, 3, H, W)`` uint8 to height and width ``target``; on bytes, torch rounds between its two passes as the library
    of the published preprocessors does."""
    if tuple(pixels.shape[-2:]) == target:
        return pixels
    return F.interpolate(pixels, target, mode=mode, antialias=mode != "nearest")


def read(folder: Path, name: str) -> tuple[Frame, Colours]:
    """
    Raises:
        UserError: the preprocessor is missing, or lacks a setting.
    """
    settings = read_settings(folder, name)
    try:
        return Frame.of(settings), Colours.of(settings)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{folder}/{name}: size, crop_size, resample, image_mean and image_std are not there as transformers writes "
            "them; copy or download it again"
        ) from None
