"""Pretrained extractors: one class per family behind one interface."""
