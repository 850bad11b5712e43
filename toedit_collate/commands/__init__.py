"""The `toedit` command and its subcommands, a folder each; none imports another.

A command is an `options` module, light to import, and what it runs. It refuses by an
`UnusableError`, which `main` prints in one line.
"""
