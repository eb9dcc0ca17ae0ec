"""Engines of linear cells: ways to solve one linear recurrence."""

__all__: list[str] = []
