"""The page as a Hugging Face Space; the variable DEMO_MODEL selects the model."""

import os
import tempfile
from pathlib import Path

try:
    import spaces  # only on ZeroGPU, before torch
except ModuleNotFoundError:
    options = {}
else:
    options = {"decorate": spaces.GPU}

from demo_t2v.checkpoints.original.download import HUB_FILES, download
from demo_t2v.checkpoints.original.files import DEMO_REPOSITORY
from demo_t2v.checkpoints.readers import PUBLISHED
from demo_t2v.config import InferenceConfig
from demo_t2v.web.page import build_page
from demo_t2v.web.server import open_session
from demo_t2v.web.theme import launch_options

model = os.environ.get("DEMO_MODEL", "sprites")
if model in PUBLISHED:  # a Space cannot run `demo-t2v download`
    for file in download(HUB_FILES["demo" if model == DEMO_REPOSITORY else "base"]):
        print(file)
session = open_session(InferenceConfig(model=model), Path(tempfile.mkdtemp()), **options)
page = build_page(session)

if __name__ == "__main__":
    page.launch(**launch_options())
