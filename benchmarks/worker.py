"""``python -m benchmarks.worker``: a worker of `benchmarks.crew`, on JAX's default backend, for ``benchmarks gpu``."""

import ctypes
import json
import os
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    """Answers a line with a line until there are no more, or until who asks has ended, however that came."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to the log

    from benchmarks.gpu_tasks import Tasks

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")

    tasks = Tasks()
    answer({"next": None})
    for line in sys.stdin:
        asked = json.loads(line)
        answer(tasks.do(asked["step"], asked["task"]))
        if not tasks.healthy:  # after an illegal access, say, nothing more can be done on the card in this process
            sys.exit("the card no longer answers this process")


if __name__ == "__main__":
    main()
