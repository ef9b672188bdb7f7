"""Runs the tutorial as it stands and keeps its outputs, in some minutes on a laptop.

  pip install -e '.[notebook]' && python docs/tutorial.py

It begins with nothing trained. With the outputs it keeps a checksum of them and of the
code that gave them, which a test compares.
"""

import base64
import hashlib
import importlib.metadata
import io
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

NOTEBOOK = Path(__file__).with_suffix(".ipynb")


def code_cells(notebook: dict) -> list[dict]:
    """Returns the cells that are run, in order."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def checksum(notebook: dict) -> str:
    """Returns the SHA-256 of all code with what it gave."""
    parts = [
        ["".join(cell["source"]), cell["execution_count"], cell["outputs"]]
        for cell in code_cells(notebook)
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def smaller(notebook: dict) -> dict:
    """Leaves out the text beside a picture, and packs each PNG: the same pixels."""
    for cell in code_cells(notebook):
        for output in cell["outputs"]:
            data = output.get("data", {})
            if len(data) > 1:
                data.pop("text/plain", None)
            if "image/png" in data:
                data["image/png"] = packed("".join(data["image/png"]))
    return notebook


def packed(png: str) -> str:
    """Returns a picture in base64 with one channel where all are the same."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        pixels = np.asarray(picture.convert("RGBA"))
    if (pixels[..., 3] == 255).all():
        pixels = pixels[..., :3]
    if (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main():
    """Runs all cells, and writes the notebook if none failed."""
    import nbclient
    import nbformat

    os.environ.pop("TUTORIAL", None)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    begun = time.time()
    with tempfile.TemporaryDirectory() as empty:
        where = {"metadata": {"path": empty}}
        client = nbclient.NotebookClient(
            notebook, timeout=None, resources=where, record_timing=False
        )
        client.execute()
    seconds = time.time() - begun
    nbformat.write(notebook, NOTEBOOK)
    written = smaller(json.loads(NOTEBOOK.read_text()))
    written["metadata"]["executed"] = {
        "by": "docs/tutorial.py",
        "checksum": checksum(written),
        "jax": importlib.metadata.version("jax"),
        "minutes": round(seconds / 60, 1),
        "cores": os.cpu_count(),
    }
    text = json.dumps(written, indent=1, ensure_ascii=False, sort_keys=True)
    NOTEBOOK.write_text(text + "\n")
    print(f"{len(text) / 1e6:.2f} MB in {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
