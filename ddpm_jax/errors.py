"""What goes wrong, and what to say of it in one line."""

import difflib
from collections.abc import Iterable


class ConfigError(Exception):
    """Something in a config, or in what it names, that its author can mend."""


def reason(error: BaseException) -> str:
    """Returns the first line of what an error says, or its kind where it is silent."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def one_line(error: BaseException) -> str:
    """Returns what an error says, without line breaks."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns what to say of a name that is none, and the nearest that is one."""
    known = sorted(known)
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    return f"unknown {kind} {name!r}; {hint}"
