"""Synced many-to-many: a label for every step.

python -m experiments.02_syntax_highlighting.run                       the class of every character of Python source
python -m experiments.02_syntax_highlighting.run --data path/to/ud_ewt the part of speech of every word of English
"""

import pathlib
from collections.abc import Sequence

from experiments import common

from . import characters, speech

HERE = pathlib.Path(__file__).resolve().parent
DATASETS = {"ud_ewt": "Universal Dependencies English EWT, en_ewt-ud-{train,dev,test}.conllu, also gzip"}


def main(argv: Sequence[str] | None = None) -> None:
    options = common.parse(argv, here=HERE, doc=__doc__, datasets=DATASETS)
    if options.data is None:
        characters.run(options)
    else:
        speech.run(options)


if __name__ == "__main__":
    common.run(main)
