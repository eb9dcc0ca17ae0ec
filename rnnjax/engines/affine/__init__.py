"""Engines of affine cells: what is sequential is a pair of loops, and the rest is written once."""

__all__: list[str] = []
