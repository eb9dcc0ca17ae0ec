"""The language model: text in, trained model and samples out.

What needs the core alone is gathered here; training, runs on disk, export and pictures need the extra ``lm`` and are
imported from their modules: `rnnjax.lm.train`, `rnnjax.lm.run`, `rnnjax.lm.export`, `rnnjax.lm.plots`.
"""

from rnnjax.fit.optimizers import OptimizerOptions, make_optimizer
from rnnjax.lm.evaluate import Evaluation, evaluate, evaluate_windows
from rnnjax.lm.model import LanguageModel, LMParams
from rnnjax.lm.sample import generate
from rnnjax.text.corpus import Chunk, Corpus, TextOptions, load_corpus
from rnnjax.text.vocabulary import Vocabulary

__all__ = [
    "Chunk",
    "Corpus",
    "Evaluation",
    "LMParams",
    "LanguageModel",
    "OptimizerOptions",
    "TextOptions",
    "Vocabulary",
    "evaluate",
    "evaluate_windows",
    "generate",
    "load_corpus",
    "make_optimizer",
]
