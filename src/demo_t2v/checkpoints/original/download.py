"""The published weights from the Hugging Face Hub, by its own client, cache and progress bars."""

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
from demo_t2v.checkpoints.resolve import ModelError, first_line

Which = Literal["base", "demo"]
Wanted = Mapping[str, tuple[str, ...]]
"""Names of files by the repository that they are in."""
WANTED: Final[Mapping[Which, Wanted]] = {
    "base": {BASE_REPOSITORY: (BASE, AUTOENCODER, CLIP)},
    "demo": {BASE_REPOSITORY: (AUTOENCODER, CLIP), DEMO_REPOSITORY: (DEMO, MOTION_ENCODER)},
}


def which(place: str) -> Which:
    """The model that one of the published repositories is of."""
    return "demo" if place == DEMO_REPOSITORY else "base"


def licences(wanted: Wanted) -> Iterator[str]:
    """For each repository a line that says under which licence it gives its files."""
    for place in wanted:
        licence = "CC BY-NC 4.0: no commercial use"
        if place == DEMO_REPOSITORY:
            licence = f"{_stated(place)}; its weights began as the base model's, so the above holds"
        yield f"{place}: licence {licence}"


def _stated(place: str) -> str:
    try:
        card = HfApi().model_info(place).card_data
    except Exception as error:  # whatever is wrong with the network: the download says so
        return f"not known ({first_line(error)})"
    licence = card.get("license") if card else None
    return str(licence or "not stated by its authors")


def download(wanted: Wanted) -> Iterator[Path]:
    """Yield the files one after another as they are there.

    Raises ConnectionError, with one line that names the files and where to put them by hand.
    """
    for place, names in wanted.items():
        for name in names:
            try:
                yield Path(hf_hub_download(place, name))
            except Exception as error:  # the client passes on whatever its network library raises
                raise ConnectionError(_by_hand(wanted, error)) from None


def downloaded(place: str) -> PublishedFiles:
    """The files of a repository's model, found in the hub's cache.

    Raises ModelError if not all of them are there.
    """
    model = which(place)
    found: dict[str, Path] = {}
    for repository, names in WANTED[model].items():
        for name in names:
            cached = try_to_load_from_cache(repository, name)
            if not isinstance(cached, str):
                raise ModelError(
                    f"{place}: {name} is not downloaded; run `demo-t2v download {model}`"
                )
            found[name] = Path(cached)
    return PublishedFiles.of(found[DEMO if model == "demo" else BASE], found)


def _by_hand(wanted: Wanted, error: Exception) -> str:
    links = "; ".join(
        f"{', '.join(names)} from https://huggingface.co/{place}" for place, names in wanted.items()
    )
    return (
        f"the hub does not answer ({first_line(error)}): put {links} into one folder, "
        "and give that folder to --model"
    )
