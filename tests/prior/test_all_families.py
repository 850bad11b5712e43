"""Every causal language model of the installed transformers, tiny and random: exact, or refused.

Prints a table (`pytest -m slow -s tests/prior/test_all_families.py`).
"""

import collections
import warnings

import pytest
import torch
from tiny_families import V, make_tiny
from transformers import logging as transformers_logging
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from toedit_collate import Prior, edit_tokens

LENGTHS = (24, 9, 17)

_BERTS = (
    "bert big_bird camembert data2vec-text electra ernie megatron-bert modernbert-decoder rembert "
    "roberta roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod"
)
REASONS = {
    "computes its logits in a way that toedit_collate does not know": f"{_BERTS} prophetnet",
    "is not causal: its states of a token change": "cpmant xlm xlnet",
    "by random hashes of the whole row": "reformer",
    "is a ModuleList without a plain weight": "musicgen musicgen_melody",
}
REFUSED = {name: reason for reason, names in REASONS.items() for name in names.split()}
# transformers 5.23.0 makes no drafts of Gemma 4; the images of Gemma 3n need timm, and Dots 3's
# text is made as dots3_note_text.
NOT_MADE = {"gemma4_assistant", "gemma4_unified_assistant", "gemma3n", "dots3_note"}


def largest_error(model, prior):
    """Of log P against the model's own forward pass, on each prefix of a document alone."""
    torch.manual_seed(1)
    ids = torch.randint(3, min(prior.vocab_size, V), (len(LENGTHS), max(LENGTHS)))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)).long()
    got = edit_tokens(prior, ids, attention_mask=mask, return_logprob=True).logprob
    worst = 0.0
    for row, length in enumerate(LENGTHS):
        for t in (1, 2, length // 2, length - 1):
            with torch.no_grad():
                logits = model(input_ids=ids[row : row + 1, :t], use_cache=False).logits[0, -1]
            expected = logits.double().log_softmax(-1)[ids[row, t]]
            worst = max(worst, abs(float(expected - got[row, t])))
    return worst


def verdict(name):
    """(what became of it, why)."""
    try:
        model = make_tiny(name)
    except Exception as error:  # whatever transformers raises
        return "not made", f"{type(error).__name__}: {' '.join(str(error).split())}"
    try:
        prior = Prior(model)
    except (ValueError, TypeError) as error:
        return "refused", str(error)
    error = largest_error(model, prior)
    return ("exact" if error < 2e-3 else "WRONG"), f"{error:.1e}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_family_is_exact_or_refused():
    transformers_logging.set_verbosity_error()
    found = {}
    for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[name] = verdict(name)
        print(f"{name:28} {found[name][0]:9} {found[name][1][:170]}", flush=True)
    counts = collections.Counter(kind for kind, _ in found.values())
    print(dict(counts))
    wrong = [name for name, (kind, _) in found.items() if kind == "WRONG"]
    assert not wrong
    refused = {name: why for name, (kind, why) in found.items() if kind == "refused"}
    assert [name for name, why in refused.items() if REFUSED.get(name, "nothing") not in why] == []
    assert {name for name, (kind, _) in found.items() if kind == "not made"} <= NOT_MADE
    assert counts["exact"] > 160
