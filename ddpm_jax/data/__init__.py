"""Images on the host: where they come from, in which order, and how they look.

Each of SOURCES opens a data set as a `base.Source`; its arguments are what a config may
say about the data.
"""

from ddpm_jax.data import arrays, folders, records

SOURCES = {
    "arrays": arrays.arrays,
    "digits": arrays.digits,
    "folder": folders.folder,
    "tfds": records.tfds,
}

__all__ = ["SOURCES"]
