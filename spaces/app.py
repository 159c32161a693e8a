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

from demo_t2v.config import InferenceConfig
from demo_t2v.web.page import build, looks
from demo_t2v.web.server import make_studio

config = InferenceConfig(pretrained=os.environ.get("DEMO_MODEL", "sprites"))
page = build(make_studio(config, Path(tempfile.mkdtemp()), **options))

if __name__ == "__main__":
    page.launch(**looks())
