"""Files that ship with the package: the recipes, and the YAML files below them."""

import os
from pathlib import Path, PurePath


_PACKAGE = Path(__file__).parents[1]


def recipes_folder() -> Path:
    """
    The folder of the recipes. A clone has it beside the package, where people read and edit it; a wheel has it inside
    the package, where `setup.cfg` puts it.
    """
    inside = _PACKAGE / "recipes"
    return inside if inside.is_dir() else _PACKAGE.parent / "recipes"


def find_file(name: str, *folders: str) -> str:
    """
    Find a file of the user's, or a shipped one.

    Args:
        name (`str`):
            Path of the file. A shipped one has the path that it has in a clone, such as
            `recipes/arithmetic/pipeline.yaml`.
        folders (`str`):
            Folders below `recipes` from which a shipped file may be named, too: with `""`, as
            `arithmetic/pipeline.yaml`, with `"arithmetic"`, as `pipeline.yaml`.

    Returns:
        `str`: `name` itself if there is such a file, or if none ships; otherwise the path of the shipped file.
    """
    path = PurePath(name)
    if os.path.exists(os.path.expanduser(name)) or ".." in path.parts:
        return name
    shipped = [recipes_folder().joinpath(folder, path) for folder in folders]
    if path.parts[:1] == ("recipes",):
        shipped.append(recipes_folder().joinpath(*path.parts[1:]))
    return next((str(file) for file in shipped if os.path.isfile(file)), name)
