"""The Hugging Face hub: models come from there by their names, and go there."""

import re
from pathlib import Path

from ddpm_jax.errors import reason

NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILES = ["*.json", "*.safetensors", "*.bin"]


def download(name: str) -> Path:
    """Downloads the files of a model, or finds them where they were before.

    Raises:
      OSError: in a line, if that is no name or it cannot be downloaded.
    """
    if not NAME.fullmatch(name):
        raise OSError(f"no file or folder {name}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise OSError(
            f"no folder {name}; to download it, pip install huggingface_hub (needs a "
            "network), or give the folder of a copy"
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except Exception as error:  # no network, no such name, no rights, a full disk
        raise OSError(
            f"no folder {name}, and it cannot be downloaded ({reason(error)}); give "
            "the folder of a copy"
        ) from error


def check_name(name: str) -> None:
    """Refuses what is no name of a model, or cannot be pushed from here at all.

    Raises:
      OSError: in a line.
    """
    if not NAME.fullmatch(name):
        raise OSError(f"{name} is no name on the hub: give one as in someone/digits")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise OSError("to push a model, pip install huggingface_hub") from error


def push(folder: Path, name: str) -> str:
    """Sends a folder to the hub as a model, which is made if it is not there.

    Args:
      folder: all of its files go there.
      name: of the model, "someone/digits".

    Returns:
      Its address.

    Raises:
      OSError: in a line, if it cannot be sent; the folder stays.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        made = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="ddpm_jax")
    except Exception as error:  # no network, no rights, no such account
        raise OSError(
            f"cannot push to {name} ({reason(error)}); {folder} is written: hf auth "
            f"login, then hf upload {name} {folder}"
        ) from error
    return str(made)
