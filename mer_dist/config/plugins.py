"""``plugins`` of the configuration: the user's own modules, imported before the rest of it is checked.

Only modules named in the configuration are imported, never code in a model folder. An entry is

* ``my_encoder``: the file ``my_encoder.py`` beside the configuration, if there is one;
* ``my_package.my_encoder``: a module that is installed or on PYTHONPATH;
* ``../encoders/my_encoder.py``: a file, by its path relative to the configuration.

The folder of the configuration is not added to Python's path: a file in it with the name of a library
never replaces the library.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

from mer_dist.core.errors import UserError

#: Prefix of the names of modules imported by their path, so that none hides another.
_PREFIX = "mer_dist_plugin_"
_PACKAGE = str(Path(__file__).parents[1])


def resolved(plugins: list[str], folder: Path) -> list[str]:
    """The entries with absolute paths of files, so that a run finds them from its own copy of the
    configuration.

    Args:
        folder: of the configuration file.

    Raises:
        UserError: one is neither a module's name nor the path of a file.
    """
    return [_resolved(name, folder) for name in plugins]


def _resolved(name: str, folder: Path) -> str:
    if name.endswith(".py"):
        return os.path.abspath(folder / Path(name).expanduser())
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
        raise UserError(
            f"plugins names {name!r}; an entry is a module, as my_package.my_encoder, or the path of a file.py"
        )
    beside = os.path.abspath(folder / f"{name}.py")
    return beside if os.path.isfile(beside) else name


def load(plugins: list[str]) -> None:
    """Import every entry of :func:`resolved` that this process has not imported yet.

    Raises:
        UserError: one is missing or fails, or registers a name that is taken.
    """
    for name in plugins:
        try:
            _file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
        except UserError as error:
            raise UserError(f"plugins: {name}: {error}") from None
        except (Exception, SystemExit) as error:  # A module may raise anything at all.
            raise UserError(f"plugins: {name}: {_why(name, error)}") from None


def _file(path: Path) -> ModuleType:
    name = _PREFIX + path.stem
    if known := sys.modules.get(name):
        if known.__file__ != str(path):
            raise UserError(f"{known.__file__} is called the same; give one of them another name")
        return known
    if not path.is_file():
        raise UserError("there is no such file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "its suffix is .py"
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _why(name: str, error: BaseException) -> str:
    """One line with the error, its file and its line."""
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        return (
            "there is no such module; it must be a file beside the configuration, installed, or on PYTHONPATH"
        )
    where = ""
    if isinstance(error, SyntaxError):
        where = f" ({error.filename}, line {error.lineno})"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        # For a module, the last frame outside this program and the import system.
        foreign = [
            one for one in frames if not one.filename.startswith((_PACKAGE, "<frozen", importlib.__file__))
        ]
        if own := [one for one in frames if one.filename == name] or foreign:
            where = f" ({own[-1].filename}, line {own[-1].lineno})"
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())[:300]
    return f"cannot be imported: {type(error).__name__}: {text}{where}"
