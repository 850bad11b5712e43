"""recipes/paper/table.py: the paper's numbers, and a run's next to them."""

import json
import math

import pytest
from paper.table import main, measured, read_run, read_tables

TABLES = read_tables()
# Where the paper's own average is not the mean of its columns, as the notes of the table say.
OTHER_AVERAGE = {("2a", "OLMo-1B"), ("4b", None), ("1", None)}


@pytest.mark.parametrize("number", TABLES)
def test_rows_fit_the_columns(number):
    table = TABLES[number]
    for values in table["rows"].values():
        assert len(values) == len(table["columns"])
    if "measures" in table:
        has_average = table["columns"][-1] == "Average"
        assert len(table["measures"]) == len(table["columns"]) - has_average


@pytest.mark.parametrize("number", [n for n in TABLES if TABLES[n]["columns"][-1] == "Average"])
def test_averages_are_means_of_the_columns(number):
    for name, values in TABLES[number]["rows"].items():
        if (number, name) in OTHER_AVERAGE or (number, None) in OTHER_AVERAGE:
            continue
        assert sum(values[:-1]) / (len(values) - 1) == pytest.approx(values[-1], abs=0.011)


def test_a_run_stands_next_to_the_paper(tmp_path, capsys):
    tasks = {
        task.split("/")[0]: {"acc": 0.5, "acc_stderr": 0.0125} for task in TABLES["3"]["measures"]
    }
    run = tmp_path / "mine"
    run.mkdir()
    (run / "metrics.json").write_text(json.dumps({"tasks": tasks, "held_out": {}}))
    main(["3", str(run)])
    printed = capsys.readouterr().out
    assert "| PT | 53.97 | 38.26 |" in printed
    assert "| *mine* | 50.00 ± 1.25 |" in printed
    assert printed.splitlines()[6].endswith("| 50.00 |")
    assert "step 10,000" in printed


def test_metrics_with_a_filter():
    report = {"tasks": {"gsm8k": {"exact_match,flexible-extract": 0.25,
                                  "exact_match_stderr,flexible-extract": 0.01}}}  # fmt: skip
    assert measured(report, "gsm8k/exact_match,flexible-extract") == (25.0, 1.0)
    assert math.isnan(measured(report, "piqa/acc")[0])
    assert measured({"held_out": {"c4": 12.5}}, "held_out/c4")[0] == 12.5


def test_both_files_of_a_run(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"tasks": {"a": {"acc": 0.5}, "b": {}}}))
    measured_later = {"tasks": {"b": {"acc": 1.0}}, "by_document": {"x": {"perplexity": 9.0}}}
    (tmp_path / "evaluation.json").write_text(json.dumps(measured_later))
    run = read_run(tmp_path)
    assert measured(run, "a/acc")[0] == 50.0
    assert measured(run, "b/acc")[0] == 100.0
    assert measured(run, "by_document/x")[0] == 9.0


def test_the_list_and_refusals(tmp_path, capsys):
    main([])
    assert "Table 7: Thresholds and regions" in capsys.readouterr().out
    for argv, match in ((["99"], "no table '99'"), (["3", str(tmp_path)], "has no metrics.json")):
        with pytest.raises(SystemExit):
            main(argv)
        assert match in capsys.readouterr().err
