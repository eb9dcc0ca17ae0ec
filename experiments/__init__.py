"""Experiments: each folder holds a question, the command that answers it, and what came out."""
