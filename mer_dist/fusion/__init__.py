"""From features to the answer: baselines, the Audio-Guided Transformer, self-training, label shift, the vote.

A fusion model of one's own is written with the two names here.
"""

from mer_dist.fusion.registered import FeatureShape, register

__all__ = ["FeatureShape", "register"]
