"""Text: where it comes from, the symbols that it is made of, and the streams that a language model reads."""

from rnnjax.text.corpus import Corpus, TextOptions, load_corpus
from rnnjax.text.vocabulary import Vocabulary

__all__ = ["Corpus", "TextOptions", "Vocabulary", "load_corpus"]
