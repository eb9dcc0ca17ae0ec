"""The language model: text in, trained model and samples out.

What needs the core alone is gathered here; training, runs on disk, export and pictures need the extra ``lm`` and are
imported from their modules: `rnnjax.lm.train`, `rnnjax.lm.run`, `rnnjax.lm.export`, `rnnjax.lm.plots`.
"""

from rnnjax.lm.evaluate import evaluate
from rnnjax.lm.model import LanguageModel
from rnnjax.lm.sample import generate

__all__ = [
    "LanguageModel",
    "evaluate",
    "generate",
]
