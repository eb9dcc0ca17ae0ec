"""Data: sequences of many lengths in one array, documents packed into rows, batches in a new order each epoch."""

from rnnjax.data.batching import bucket_by_length, pad_sequences, time_first
from rnnjax.data.packing import pack_documents, unpack_documents
from rnnjax.data.shuffled import ShuffledBatches

__all__ = [
    "ShuffledBatches",
    "bucket_by_length",
    "pack_documents",
    "pad_sequences",
    "time_first",
    "unpack_documents",
]
