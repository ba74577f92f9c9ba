"""Objects that a recipe names by import path. This module imports no pydantic, so that ``--help`` answers at once.

An import path is ``package.module:name``, or ``module:name`` of a file in the folder in which the command runs. The
digest of the module's source belongs in the run's fingerprint, so that a run with a changed object is refused.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metareward.errors import UserError


@dataclass(frozen=True, slots=True)
class Imported:
    """An object that a recipe names: ``value`` is the instance, ``sha256`` the digest of its module's source file."""

    path: str
    value: Any
    sha256: str


def import_name(path: str, key: str) -> Imported:
    """What import path ``path`` names, a class as it is; the setting ``key`` holds the path.

    Raises `UserError` naming ``key`` when the module or name is missing, or importing raises.
    """
    module_name, _, name = path.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
        value = getattr(module, name)
    except Exception as error:  # whatever a user's module raises at import
        raise UserError(f"{key}: can't import {path}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)
    source = getattr(module, "__file__", None)
    if source is None:
        raise UserError(
            f"{key}: {path} has no source file, so a change of it could not be noticed; fix: name a .py module"
        )
    return Imported(path, value, hashlib.sha256(Path(source).read_bytes()).hexdigest())


def import_object(path: str, key: str, methods: tuple[str, ...]) -> Imported:
    """The object at import path ``path``, which the setting ``key`` names; a class is instantiated without arguments.

    Raises `UserError` as `import_name` does, when instantiating raises, or when the object lacks one of ``methods``.
    """
    found = import_name(path, key)
    try:
        value = found.value() if isinstance(found.value, type) else found.value
    except Exception as error:  # whatever a user's class raises
        raise UserError(f"{key}: can't import {path}: {type(error).__name__}: {error}") from error
    missing = [method for method in methods if not callable(getattr(value, method, None))]
    if missing:
        raise UserError(f"{key}: {path} has no method {', '.join(missing)}; fix: add it, or name another object")
    return Imported(path, value, found.sha256)
