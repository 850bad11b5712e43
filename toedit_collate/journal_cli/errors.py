"""What the command says when it can't go on."""


class UnusableError(Exception):
    """An argument or a file that can't be used; one line: what, the value seen, the mend."""
