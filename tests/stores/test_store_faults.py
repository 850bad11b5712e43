"""Random flips and cuts of every file."""

import numpy as np
import pytest
import torch
from conftest import make_llama
from journals import record

from toedit_collate import EditPolicy, Journal, Prior, edit_tokens
from toedit_collate.commands.main import main
from toedit_collate.stores.cache import DecisionCache
from toedit_collate.stores.journal import journal as journal_module
from toedit_collate.stores.segments import DamagedFileError

POLICY = EditPolicy(region="below", threshold=0.5, exclude_original=True)
TEXTS = torch.randint(5, 64, (6, 40), generator=torch.Generator().manual_seed(0))


def faults(files, number, generator):
    """Damage the files one at a time, and repair them; yields what was done."""
    whole = {path: path.read_bytes() for path in files}
    sizes = np.array([len(content) for content in whole.values()])
    for n in range(number):
        path = files[generator.choice(len(files), p=sizes / sizes.sum())]
        content = bytearray(whole[path])
        place = int(generator.integers(len(content)))
        if n % 6 == 5:
            path.write_bytes(content[:place])
            yield "cut"
        else:
            content[place] ^= 1 << int(generator.integers(8))
            path.write_bytes(content)
            yield "flip"
        path.write_bytes(whole[path])


@pytest.mark.parametrize("number", [150, pytest.param(3000, marks=pytest.mark.slow)])
def test_no_fault_of_a_cache_gives_other_edits(tmp_path, number, capsys):
    prior = Prior(make_llama(vocab_size=64))
    with DecisionCache(tmp_path) as cache:
        expected = edit_tokens(prior, TEXTS, policy=POLICY, cache=cache).input_ids
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 1
    counts = {"flip": 0, "cut": 0, "noticed": 0}
    for fault in faults(files, number, np.random.default_rng(0)):
        counts[fault] += 1
        try:
            stand_in = DecisionCache(tmp_path).prior(POLICY)
            cache = DecisionCache(tmp_path)
            edited = edit_tokens(stand_in, TEXTS, policy=POLICY, cache=cache)
        except DamagedFileError:
            counts["noticed"] += 1
        else:
            assert torch.equal(edited.input_ids, expected)
    with capsys.disabled():
        print(f"\ncache: {counts}")
    assert counts["noticed"] > 0.95 * number


@pytest.mark.parametrize("number", [150, pytest.param(3000, marks=pytest.mark.slow)])
def test_no_fault_of_a_journal_goes_unnoticed(tmp_path, number, capsys):
    with Journal(tmp_path) as journal:
        for step, text in enumerate(TEXTS.tolist()):
            record(journal, text, {2: 7, 5: None, 9: 8}, step=step)
    with Journal(tmp_path) as journal:
        for step, text in enumerate(TEXTS.tolist()):
            record(journal, text, {3: 7}, generation=2, step=step)
    files = sorted(path for path in tmp_path.glob("*.safetensors"))
    expected = [Journal(tmp_path).replay(text, 2) for text in TEXTS.tolist()]
    stats = Journal(tmp_path).stats()
    counts = {"flip": 0, "cut": 0, "noticed": 0}
    for fault in faults(files, number, np.random.default_rng(0)):
        counts[fault] += 1
        journal_module.JOURNALS.clear()
        try:
            journal = Journal(tmp_path)
            replayed = [journal.replay(text, 2) for text in TEXTS.tolist()]
        except DamagedFileError:
            counts["noticed"] += 1
            # The command reports each, too, but takes long.
            if counts["noticed"] % 50 == 1:
                assert main(["journal", "verify", str(tmp_path)]) == 1
        else:
            assert replayed == expected
            assert journal.stats() == stats
    with capsys.disabled():
        print(f"\njournal: {counts}")
    assert counts["noticed"] > 0.95 * number
