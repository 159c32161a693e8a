"""Small files of weights beside a model (adapters, motion words): a name to a local file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from demo_t2v.core.atomic_io import path_exists
from demo_t2v.core.errors import UserError


def find_weight_file(
    source: str | Path,
    weight_name: str,
    what: str,
    error: type[UserError],
    other_names: Sequence[str] = (),
) -> Path:
    """The file of a file's name, a folder or a hub repository, both with `weight_name` in them.

    Where they do not have it, the first of `other_names` counts. `what` names it in messages, such
    as "adapter". The hub is not asked for a path that exists. Raises `error` where there is none,
    ConnectionError if the hub does not answer.
    """
    path = Path(source)
    names = (weight_name, *other_names)
    file = _first(path, names) if path.is_dir() else path
    if file.is_file():
        return file
    missing = error(
        f"{file}: there is no such {what}; use a file, a folder with {weight_name}, or a hub "
        "repository as org/name"
    )
    is_name = not path.is_absolute() and len(path.parts) == 2 and path.suffix != ".safetensors"
    if path_exists(path) or not is_name:
        raise missing
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:  # `hf_hub_download` would retry for half a minute
        file = _first(Path(snapshot_download(str(source), allow_patterns=list(names))), names)
    except (HFValidationError, RepositoryNotFoundError):
        raise missing from None
    except Exception as problem:  # the client raises any error of its network library
        reason = str(problem).strip().partition("\n")[0]
        raise ConnectionError(
            f"{source}: is no local {what}, and the hub does not provide it ({reason})"
        ) from None
    if not file.is_file():
        raise missing
    return file


def _first(folder: Path, names: Sequence[str]) -> Path:
    """The first of these files that a folder has; without any, the path of the first."""
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])
