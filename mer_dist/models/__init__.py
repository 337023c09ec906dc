"""Pretrained extractors, one class a family behind one protocol."""
