"""Which images lie in a folder, in which classes, and what else lies there."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

# What Pillow reads wherever it is installed, by the ends of names.
EXTENSIONS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp"),
    *(".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".tga"),
}


class Listing(NamedTuple):
    """The images of a folder.

    Attributes:
        names: the files, relative to the folder, class by class.
        classes: the names of its classes, whose numbers are their places here; none
            where the images lie in the folder itself.
        passed_over: how many other files there are, by the ends of their names.
    """

    names: list[str]
    classes: list[str]
    passed_over: Counter[str]


def natural(name: str) -> list:
    """Sorts names as people do: 2 before 10."""
    parts = re.split(r"(\d+)", name)
    numbers = [int(part) for part in parts[1::2]]
    return [[*zip(parts[::2], [*numbers, -1], strict=True)], name]


def scan(root: Path) -> Listing:
    """Lists the images under a folder; links are followed, but no folder read twice.

    Raises:
        FileNotFoundError: if there is no image.
        ValueError: if the classes are unclear, see `arrange`.
    """
    files, others, seen = [], Counter(), {_place(os.stat(root))}

    def walk(folder, within):
        links = []
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    # Links last, the nearest first: those of classes before those
                    # within them, and both after what may lie beside them.
                    links.append(entry) if entry.is_symlink() else enter(entry, within)
                elif entry.is_file():
                    files.append(within + entry.name)
                else:
                    others[_ending(entry.name)] += 1
        later.extend((link, within) for link in links)

    def enter(entry, within):
        place = _place(entry.stat())
        if place in seen:
            others["linked again"] += 1
            return
        seen.add(place)
        walk(entry.path, f"{within}{entry.name}/")

    later = []
    walk(root, "")
    while later:
        nearest = min(later, key=lambda link: link[1].count("/"))
        later.remove(nearest)
        enter(*nearest)
    with os.scandir(root) as entries:
        folders = [entry.name for entry in entries if entry.is_dir()]
    return arrange(root, files, folders, others)


def arrange(
    root: str | os.PathLike,
    files: Iterable[str],
    folders: Iterable[str],
    others: Mapping[str, int] = MappingProxyType({}),
) -> Listing:
    """Tells the images among the files of a folder, and their classes.

    Args:
        root: the folder, as messages name it.
        files: their names, relative to it; those that are hidden, or in a folder that
            is, are passed over without a word.
        folders: the names of those at its first level.
        others: how many more there are that are no files, by kind.

    Raises:
        FileNotFoundError: if there is no image.
        ValueError: if the classes are unclear: images both in the folder itself and in
            sub-folders, or a sub-folder beside others that has none.
    """
    names, passed_over = [], Counter(others)
    for name in files:
        if name.startswith(".") or "/." in name:
            continue
        if _suffix(name) in EXTENSIONS:
            names.append(name)
        else:
            passed_over[_ending(name)] += 1
    if not names:
        raise FileNotFoundError(
            f"there is no image in {root}: looked for {', '.join(sorted(EXTENSIONS))}"
            + (f"; found {in_words(passed_over)}" if passed_over else "")
        )
    return Listing(*_classes(root, names, folders), passed_over)


def in_words(passed_over: Counter[str]) -> str:
    """Returns counts as in "3 .heic, 1 .txt"."""
    return ", ".join(f"{count} {kind}" for kind, count in passed_over.most_common(6))


def _classes(root, names, folders):
    """The names in order, and the classes."""
    inside = {name.partition("/")[0] for name in names if "/" in name}
    if not inside:
        return sorted(names), []
    direct = [name for name in names if "/" not in name]
    if direct:
        raise ValueError(
            f"{root} holds images both directly ({direct[0]}) and in sub-folders "
            f"({min(inside, key=natural)}), so its classes are unclear: keep one of "
            "the two"
        )
    there = {folder for folder in folders if not folder.startswith(".")}
    if empty := sorted(there - inside, key=natural):
        raise ValueError(
            f"the class {empty[0]!r} of {root} has no image that can be read: put some "
            "in, or take the folder away (the classes behind it move up then)"
        )
    numbers = {name: i for i, name in enumerate(sorted(inside, key=natural))}

    def place(name):
        first, *rest = name.split("/")
        return numbers[first], rest

    return sorted(names, key=place), [*numbers]


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _ending(name: str) -> str:
    return _suffix(name) or "no ending"


def _place(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino
