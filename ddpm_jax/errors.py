"""What the errors of others say."""


def reason(error: BaseException) -> str:
    """Returns the first line of what an error says, or its kind where it is silent."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
