"""Which model may see which clip: folds, and the copies of a fine-tuned extractor."""
