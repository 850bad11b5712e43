"""The `toedit` command and its subcommands.

Each subcommand adds its options, and imports heavy packages only when it runs. Errors that a user
can fix are `UnusableError`s, which `main` prints in one line.
"""
