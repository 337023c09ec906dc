"""Facts about the image models that transformers knows, without any of them."""

from __future__ import annotations

from dataclasses import replace

from mer_dist.models.clip_family import CLIP
from mer_dist.models.family import FAMILIES

#: ``model_type`` of models with an image tower beside another -> the class of the tower, which reads their weights.
TOWERS = {"siglip": "SiglipVisionModel"}
#: The embedding of a frame: what the model pools itself, or its class token.
POOLED = ("siglip", "siglip_vision_model")
CLASS_TOKEN = ("vit", "dinov2", "dinov3_vit")
IMAGE = replace(
    CLIP, model_types=(*POOLED, *CLASS_TOKEN), published={}, extractor="mer_dist.models.image:ImageExtractor"
)
FAMILIES.add("image", IMAGE, __name__)
