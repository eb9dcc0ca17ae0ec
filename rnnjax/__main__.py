"""``python -m rnnjax`` is the command ``rnnjax``."""

from rnnjax.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
