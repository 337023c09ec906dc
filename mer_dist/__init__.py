"""mer_dist: from short video clips to emotion labels, on one workstation or many nodes."""

import os

__version__ = "0.1.0"

# OpenCV reads it when it is first imported: a few bytes of a picture can claim billions of pixels.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(8192 * 8192))
