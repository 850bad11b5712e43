"""Run a study, or go on with one: its table is printed; JSON, table and figures are kept.

python recipes/studies/run.py --study STUDY.yaml --prior P --data D --output O [--size gpu]
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes: `common`, `studies`

from common.models import start

from studies.engine import make_study
from studies.settings import read_study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", required=True, type=Path, help="its YAML file")
    parser.add_argument("--size", help="one of the file's `sizes`, as gpu")
    parser.add_argument("--prior", required=True, metavar="PATH_OR_HUB_ID")
    parser.add_argument("--trainee", metavar="PATH_OR_HUB_ID", help="default: the prior")
    parser.add_argument("--data", required=True, type=Path, help="folder of the study's files")
    parser.add_argument("--output", required=True, type=Path, help="folder of runs and results")
    args = parser.parse_args()
    study = read_study(args.study, args.size)
    print(f"{study.question.strip()}\nCounts as yes: {study.counts_as_yes.strip()}\n", flush=True)
    print(make_study(study, args.data, args.prior, args.output, args.trainee))


if __name__ == "__main__":
    start(main)
