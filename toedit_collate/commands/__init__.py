"""The `toedit` command and its subcommands."""
