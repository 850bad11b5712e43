"""What data, priors and edits look like: figures, tables and pages.

Nothing here changes data or trains; everything can be had from Python as well as by the commands
`recipes/paper/theory.py`, `toedit inspect` and `recipes/paper/report.py`.

Words of this folder:

* *arm*: one of the settings that a study compares.
* *kind*: what a token stands for to a reader: a digit, punctuation, the beginning of a word, ...
* *coverage*: the share of the first set's documents whose perplexity lies within the range that
  another set reaches.
* *runner-up*: a token that the prior finds probable in place of the one that is there.
"""
