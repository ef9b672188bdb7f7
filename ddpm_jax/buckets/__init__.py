"""Folders in buckets, gs:// and s3://, as an address names them."""

import re
from os import PathLike

from ddpm_jax.buckets.base import Bucket
from ddpm_jax.buckets.gcs import Gcs
from ddpm_jax.buckets.s3 import S3

BUCKETS = {"gs": Gcs, "s3": S3}
# A path has one slash where its address has two.
_ADDRESS = re.compile(rf"({'|'.join(BUCKETS)}):/+([^/]+)/*(.*?)/*", re.DOTALL)


def is_address(path: str | PathLike) -> bool:
    """Whether a path is that of a bucket."""
    return _ADDRESS.fullmatch(str(path)) is not None


def split(address: str | PathLike) -> tuple[str, str, str]:
    """Returns the scheme of an address, the bucket's name and that within it."""
    return _ADDRESS.fullmatch(str(address)).groups()


def open_bucket(address: str | PathLike) -> tuple[Bucket, str]:
    """Opens the bucket of an address.

    Returns:
      The bucket, and the name within it.

    Raises:
      OSError: saying what is missing.
    """
    scheme, name, within = split(address)
    return BUCKETS[scheme](name), within


__all__ = ["BUCKETS", "is_address", "open_bucket", "split"]
