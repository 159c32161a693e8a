"""Make the example videos of the web page anew, as the page makes them.

python scripts/example_videos.py
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from demo_t2v.config import InferenceConfig
from demo_t2v.web.examples import EXAMPLES, EXAMPLES_FOLDER
from demo_t2v.web.history import GenerationResult
from demo_t2v.web.server import open_session


def main() -> None:
    shutil.rmtree(EXAMPLES_FOLDER, ignore_errors=True)
    EXAMPLES_FOLDER.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(InferenceConfig(device="cpu"), Path(folder))
        for example in EXAMPLES:
            *_, result = session.generate(example.request(session.limits))
            assert isinstance(result, GenerationResult)
            shutil.copyfile(result.videos[0].mp4, example.file)
            print(f"wrote {example.file}: {example.file.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
