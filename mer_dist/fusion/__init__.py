"""From features to predictions: baselines, Audio-Guided Transformer, self-training, label shift, the vote.

A custom fusion model needs the two names exported here.
"""

from mer_dist.fusion.registered import FeatureShape, register

__all__ = ["FeatureShape", "register"]
