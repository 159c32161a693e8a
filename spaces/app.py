"""The page as a Space; the variable DEMO_MODEL names another model than the built-in one."""

import os
import tempfile
from pathlib import Path

try:
    import spaces  # only there on ZeroGPU, and to be imported before torch
except ModuleNotFoundError:
    options = {}
else:
    options = {"on_gpu": spaces.GPU}

from demo_t2v.checkpoints.original.download import WANTED, download, which
from demo_t2v.checkpoints.original.files import PUBLISHED
from demo_t2v.config import InferenceConfig
from demo_t2v.web.layout import build, looks
from demo_t2v.web.server import make_studio

model = os.environ.get("DEMO_MODEL", "sprites")
if model in PUBLISHED:  # a Space has nobody who could run `demo-t2v download` first
    for file in download(WANTED[which(model)]):
        print(file)
page = build(make_studio(InferenceConfig(model=model), Path(tempfile.mkdtemp()), **options))

if __name__ == "__main__":
    page.launch(**looks())
