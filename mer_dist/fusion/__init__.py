"""From features to the answer: baselines, the Audio-Guided Transformer, self-training, label shift, the vote."""
