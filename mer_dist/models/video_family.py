"""Facts about the models of transformers that see a window of frames at once, without any of them."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from mer_dist.models.clip_family import CLIP
from mer_dist.models.family import FAMILIES, asks_for_code

#: The embedding of a window by the model's convention: its class token, or the mean of all its patches.
CLASS_TOKEN = ("vivit", "timesformer")
MEAN = ("videomae", "vjepa2")
#: Either has the size and the colours of frames.
PREPROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")
#: Frames that most of them see at once.
WINDOW = 16
_VIDEO = replace(
    CLIP,
    model_types=(*CLASS_TOKEN, *MEAN),
    files=(),
    one_of_files=PREPROCESSORS,
    refuse_settings=asks_for_code,
    published={},
    budgets=(WINDOW, 256),
    longest_segment=lambda config: WINDOW,
    typical_clip=lambda config, frames: (ceil(min(frames, config.frames or frames) / WINDOW),) * 2,
    extractor="mer_dist.models.video:VideoExtractor",
)
VJEPA2 = replace(_VIDEO, extractor="mer_dist.models.video:Vjepa2Extractor")
VIDEO = replace(_VIDEO, by_type={"vjepa2": VJEPA2})
FAMILIES.add("video", VIDEO, __name__)
