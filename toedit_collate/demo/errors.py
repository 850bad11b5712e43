"""What the demo says when it can't go on."""


class DemoError(Exception):
    """An option or a data file that can't be used; one line: what, the value seen, the mend."""
