"""Ctrl-C in every command: one line, the status of an interrupt, and nothing half-written.

`toedit apply` and `toedit journal export` have tests of their own, next to those of their output.
"""

import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import likely_ids, make_llama, make_tokenizer
from journals import record

from toedit_collate import Journal
from toedit_collate.commands.main import main
from toedit_collate.data import files


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    make_llama().save_pretrained(folder / "prior")
    make_tokenizer().save_pretrained(folder / "prior")
    rows = [{"input_ids": one.tolist()} for one in likely_ids(make_llama(), 4, 30)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Journal(folder / "journal") as journal:
        record(journal, list(range(10, 22)), {2: 7, 5: 9}, step=0)
    return folder


COMMANDS = {
    "inspect": "inspect --prior {place}/prior --data {place}/data.jsonl --html {out}/a.html",
    "plan": "plan --config {config} --json {out}/plan.json",
    "recipes": "recipes copy pretrain_tiny {out}/new",
}
READS = {
    "journal show": ("journal show {place}/journal", "stores.journal.files.read_frame"),
    "journal verify": ("journal verify {place}/journal", "stores.journal.files.read_frame"),
    "bench": ("bench --prior {place}/prior", "commands.bench.run_bench"),
    "demo": ("demo", "commands.demo.show.show_demo"),
    "sft": ("sft --config {config}", "commands.sft.run_sft"),
}


def interrupt(*_, **__):
    raise KeyboardInterrupt


def run(command, place, out):
    config = os.path.join(os.path.dirname(__file__), "../../recipes/configs/sft_lora_tiny.yaml")
    return main(command.format(place=place, out=out, config=config).split())


@pytest.fixture
def hook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # set back afterwards


@pytest.mark.usefixtures("hook", "no_bars")
@pytest.mark.parametrize("name", COMMANDS)
def test_at_the_moment_before_a_file_gets_its_name(name, place, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt) as raised:
            run(COMMANDS[name], place, tmp_path)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == []
    capsys.readouterr()
    sys.excepthook(raised.type, raised.value, raised.tb)
    assert capsys.readouterr().err.endswith(": interrupted\n")


@pytest.mark.usefixtures("hook")
@pytest.mark.parametrize("name", READS)
def test_while_it_works(name, place, tmp_path, monkeypatch, capsys):
    command, target = READS[name]
    monkeypatch.setattr(f"toedit_collate.{target}", interrupt)
    with pytest.raises(KeyboardInterrupt) as raised:
        run(command, place, tmp_path)
    capsys.readouterr()
    sys.excepthook(raised.type, raised.value, raised.tb)
    assert capsys.readouterr().err.endswith(": interrupted\n")


def test_while_torch_is_imported():
    """Which takes seconds; it was a traceback of sixty lines."""
    code = (
        "import builtins, os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "real = builtins.__import__\n"
        "def imports(name, *rest):\n"
        "    if name == 'torch': os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = imports\n"
        "sys.argv[0] = 'toedit'\n"
        "from toedit_collate.commands.main import main\n"
        "main(['theory'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == "toedit: interrupted\n"
