"""Packages that not everybody needs: imported when they are asked for, or said how to be had."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["require"]


def require(module: str, package: str, where: str, install: str = "") -> Any:
    """Imports a package when it is needed.

    Args:
        module: what to import, for example ``"haiku"``.
        package: what to call it in the message, for example ``"dm-haiku"``.
        where: the function that needs it.
        install: what pip is told; ``package`` where that is left out.

    Raises:
        ModuleNotFoundError: in one sentence with the install command, where the package is missing.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, module.split(".")[0]):  # it is there, and something that it needs is not
            hint = " or set KERAS_BACKEND=jax" if module == "keras" else ""
            raise ModuleNotFoundError(
                f"{where}: {package} is there, and {error.name}, which it imports, is not; install that{hint}.",
                name=error.name,
            ) from error
        raise ModuleNotFoundError(
            f"{where}: {package} is needed, which is not installed; pip install {install or package}.", name=error.name
        ) from None
