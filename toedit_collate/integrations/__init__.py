"""One small file for each other place where people train, or edit, at scale.

Nothing here is imported by the rest of the package, and no file imports what may be missing: each
is imported by the framework that it is for, or run beside it.

Glossary:
    section: the part of a framework's own YAML that is ours, under the key `toedit`.
    attach: what all of them come down to, `toedit_collate.attach`.
"""
