"""Which model may see which clip: folds, and the adapters of a fine-tuned extractor."""
