"""What a data set holds, by name, so that a run can tell it from others."""

import itertools
from typing import NamedTuple

import numpy as np

from ddpm_jax.data.base import Source, digest, labels_of
from ddpm_jax.data.listing import in_words


class Contents(NamedTuple):
    """What a source holds.

    Attributes:
      images: how many.
      classes: their names, in the order of their numbers.
      fingerprint: changes with images or labels, of files with names or sizes, not with
        the place.
    """

    images: int
    classes: list[str]
    fingerprint: str

    def __str__(self) -> str:
        said = f"{self.images:,} images"
        if self.classes:
            more = ", …" if len(self.classes) > 10 else ""
            names = ", ".join(self.classes[:10])
            said += f", {len(self.classes)} classes: {names}{more}"
        return said

    def changed_from(self, before: "Contents") -> str | None:
        """Says what differs from what was there before, or None where nothing does."""
        pairs = itertools.zip_longest(before.classes, self.classes, fillvalue="none")
        for number, (old, new) in enumerate(pairs):
            if old != new:
                return f"class {number} is {new}, and was {old}"
        if before.images != self.images:
            return f"there are {self.images:,} images, and were {before.images:,}"
        if before.fingerprint != self.fingerprint:
            return "some images are others, or lie under other names"
        return None


def contents_of(source: Source) -> Contents:
    """Returns what a source holds.

    A source may have `class_names`, and a method `fingerprint()`: of files by their
    names, sizes and labels, of arrays by all that they hold.
    """
    names = getattr(source, "class_names", range(source.num_classes))
    if hasattr(source, "fingerprint"):
        found = source.fingerprint()
    else:
        found = digest(labels_of(source, np.arange(len(source))).tobytes())
    return Contents(len(source), [*map(str, names)], found)


def passed_over(source: Source) -> str:
    """Says what of a folder is not read, "" where all is."""
    others = getattr(source, "passed_over", None)
    if not others:
        return ""
    files = "1 file" if others.total() == 1 else f"{others.total():,} files"
    return f"{files} passed over: {in_words(others)}"
