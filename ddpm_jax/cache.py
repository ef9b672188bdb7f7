"""Where things made once are kept between runs."""

import os
from pathlib import Path


def folder() -> Path:
    """Returns `$XDG_CACHE_HOME/ddpm_jax`, or `~/.cache/ddpm_jax`; it may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ddpm_jax")
