"""The original checkpoint files from the Hugging Face Hub, through its client and its cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

from demo_t2v.checkpoints.original.files import (
    AUTOENCODER,
    BASE,
    BASE_REPOSITORY,
    CLIP,
    DEMO,
    DEMO_REPOSITORY,
    MOTION_ENCODER,
    PublishedFiles,
)
from demo_t2v.model_folder import ModelError, first_line

HubFiles = Mapping[str, tuple[str, ...]]
"""File names by repository."""
HUB_FILES: Final[Mapping[Literal["base", "demo"], HubFiles]] = {
    "base": {BASE_REPOSITORY: (BASE, AUTOENCODER, CLIP)},
    "demo": {BASE_REPOSITORY: (AUTOENCODER, CLIP), DEMO_REPOSITORY: (DEMO, MOTION_ENCODER)},
}
"""The files of each model."""


def licences(files: HubFiles) -> Iterator[str]:
    """One line for each repository: the licence of its files."""
    for repository in files:
        licence = "CC BY-NC 4.0: no commercial use"
        if repository == DEMO_REPOSITORY:
            licence = (
                f"{_stated_licence(repository)}; its weights began as the base model's, "
                "so the above holds"
            )
        yield f"{repository}: licence {licence}"


def _stated_licence(repository: str) -> str:
    try:
        card = HfApi().model_info(repository).card_data
    except Exception as error:  # the download reports what is wrong with the network
        return f"not known ({first_line(error)})"
    licence = card.get("license") if card else None
    return str(licence or "not stated by its authors")


def download(files: HubFiles) -> Iterator[Path]:
    """Download the files and yield each one's path.

    Raises ConnectionError, with one line that lists the files and says where to put them by hand.
    """
    for repository, names in files.items():
        for name in names:
            try:
                yield Path(hf_hub_download(repository, name))
            except Exception as error:  # the client passes on any error of its network library
                raise ConnectionError(_manual_download(files, error)) from None


def downloaded(repository: str) -> PublishedFiles:
    """The files of a repository's model in the hub's cache.

    Raises ModelError if one of them is missing.
    """
    model: Literal["base", "demo"] = "demo" if repository == DEMO_REPOSITORY else "base"
    found: dict[str, Path] = {}
    for source, names in HUB_FILES[model].items():
        for name in names:
            cached = try_to_load_from_cache(source, name)
            if not isinstance(cached, str):
                raise ModelError(
                    f"{repository}: {name} is not downloaded; run `demo-t2v download {model}`"
                )
            found[name] = Path(cached)
    return PublishedFiles.of(found[DEMO if model == "demo" else BASE], found)


def _manual_download(files: HubFiles, error: Exception) -> str:
    links = "; ".join(
        f"{', '.join(names)} from https://huggingface.co/{repository}"
        for repository, names in files.items()
    )
    return (
        f"the hub does not answer ({first_line(error)}): put {links} into one folder, "
        "and give that folder to --model"
    )
