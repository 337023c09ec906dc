"""Facts about the image models that transformers knows, without any of them."""

from __future__ import annotations

from dataclasses import replace

from mer_dist.models.clip_family import CLIP
from mer_dist.models.family import FAMILIES, asks_for_code

#: ``model_type`` of models with an image tower beside another -> the class of the tower, which reads their weights.
TOWERS = {
    "siglip": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
    "clip": "CLIPVisionModelWithProjection",
    "clip_vision_model": "CLIPVisionModelWithProjection",
}
#: The embedding of a frame by the model's convention: projected to the space that it shares with words, what the model
#: pools itself, or its class token.
PROJECTED = ("clip", "clip_vision_model", "chinese_clip")
POOLED = ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model")
CLASS_TOKEN = ("vit", "dinov2", "dinov3_vit")
#: Those that fit their positions to the size of a frame.
ANY_SIZE = ("dinov2", "dinov3_vit")
_IMAGE = replace(
    CLIP,
    model_types=(*PROJECTED, *POOLED, *CLASS_TOKEN),
    refuse_settings=asks_for_code,
    published={},
    extractor="mer_dist.models.image:ImageExtractor",
)
SIGLIP2 = replace(_IMAGE, extractor="mer_dist.models.image:Siglip2Extractor")
CHINESE_CLIP = replace(_IMAGE, extractor="mer_dist.models.image:ChineseClipExtractor")
IMAGE = replace(
    _IMAGE, by_type={"siglip2": SIGLIP2, "siglip2_vision_model": SIGLIP2, "chinese_clip": CHINESE_CLIP}
)
FAMILIES.add("image", IMAGE, __name__)
