"""Draw the videos of an output folder as one picture: six frames of each video in a row.

demo-t2v generate --prompts prompts/examples.csv --out outputs/examples
python scripts/contact_sheet.py outputs/examples docs/examples.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from demo_t2v.evaluation.frame_grids import contact_sheet
from demo_t2v.inference.outputs import read_manifest


def main() -> None:
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    videos = [(folder / file, entry["prompt"]) for file, entry in read_manifest(folder).items()]
    contact_sheet(videos).save(target, optimize=True)
    print(f"wrote {target}: {len(videos)} videos")


if __name__ == "__main__":
    main()
