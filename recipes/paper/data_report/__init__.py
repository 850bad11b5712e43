"""What sets of data look like to a prior, beside each other: the paper's Figures 3 to 6, 9 to 11.

`measure_set` reads a set once; `write_report` makes figures, tables and a page of several.

Words of this folder:

* *stratum*: positions whose observed tokens have a P between two bounds; some of each are looked at
  closely, with the whole distribution, and stand for the others.
* *bucket*: one of 10,000 numbers that an n-gram is hashed to.
* *concentration*: the chance that two n-grams drawn from a set fall into one bucket, times the
  number of buckets: 1 if all are equally frequent.
"""

from .measure import SetSettings, measure_set
from .write import write_report

__all__ = ["SetSettings", "measure_set", "write_report"]
