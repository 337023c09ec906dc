"""mer_dist: from short video clips to emotion labels, on one workstation or many nodes.

``import mer_dist as md`` gives the functions and classes of ``__all__``, each imported when it is first used.
"""

import os
from importlib import import_module

__version__ = "0.1.0"

# OpenCV reads it when it is first imported: a few bytes of a picture can claim billions of pixels.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(8192 * 8192))

#: Public name -> the module that defines it; the package and its command line import none of them before its use.
_PUBLIC = {
    **dict.fromkeys(("load", "shard", "finetune", "extract", "fuse"), "mer_dist.api.stages"),
    **dict.fromkeys(("Run", "Result"), "mer_dist.api.results"),
    "FusionClassifier": "mer_dist.api.fusion_classifier",
    **dict.fromkeys(("Predictor", "Prediction"), "mer_dist.predict.predictor"),
    "UserError": "mer_dist.core.errors",
}
__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mer_dist' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
