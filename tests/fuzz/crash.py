"""A decoder that crashes on one clip. It stands alone, since every worker process imports it."""

from __future__ import annotations

import os
import signal

from mer_dist.corpus import convert

_convert = convert.convert


def on_a001(config, clip):
    if clip.name == "a001":
        os.kill(os.getpid(), signal.SIGSEGV)
    return _convert(config, clip)
