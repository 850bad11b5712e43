"""What two ranks do with FSDP2-sharded models; a part of distributed_run.py.

Below the Trainer: on a CPU, accelerate runs DDP where FSDP is asked for.
"""

from __future__ import annotations

import pathlib

import torch
from conftest import make_llama, make_tokenizer
from peft import get_peft_model
from torch.distributed.fsdp import fully_shard
from trainees import AGGRESSIVE, documents, lora

from toedit_collate import Journal, Prior, ToEditCollator, edit_tokens
from toedit_collate.training.refresh import Refresher
from toedit_collate.training.snapshot import LiveWeights, save_prior

TOKENIZER = make_tokenizer()


def shard(model, *, root=True):
    trunk = (model.get_base_model() if hasattr(model, "peft_config") else model).model
    for layer in trunk.layers:
        fully_shard(layer)
    return fully_shard(model) if root else model


def edits(prior, rows) -> list[list[list[int]]]:
    return [edit_tokens(prior, ids, policy=AGGRESSIVE).input_ids.tolist() for ids in rows]


def logprobs(prior, rows):
    return [edit_tokens(prior, ids, return_logprob=True).logprob[0, 1:] for ids in rows]


def close(ours, theirs) -> bool:
    return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))


def separate(rows, folder, rank) -> dict:
    plain, sharded = Prior(make_llama(), TOKENIZER), Prior(shard(make_llama()), TOKENIZER)
    found = {
        "edits": edits(sharded, rows) == edits(plain, rows),
        "logprobs": close(logprobs(sharded, rows), logprobs(plain, rows)),
        "fingerprint": sharded.fingerprint == plain.fingerprint,
        "layers alone": edits(Prior(shard(make_llama(), root=False), TOKENIZER), rows)
        == edits(plain, rows),
    }
    # Rank 0 has nothing to edit in its second row, rank 1 in its first.
    labels = [ids if (number + rank) % 2 else ids * 0 - 100 for number, ids in enumerate(rows)]
    both = [
        [
            edit_tokens(p, ids, labels=of, policy=AGGRESSIVE).input_ids.tolist()
            for ids, of in zip(rows, labels, strict=True)
        ]
        for p in (sharded, plain)
    ]
    found["nothing to edit on one rank"] = both[0] == both[1] != [r.tolist() for r in rows]
    # Documents of very different lengths are scored in several passes, not the same on each rank.
    lengths = [200] * 20 + [8] * (20 if rank else 0)
    uneven = torch.full((len(lengths), 200), 7)
    mask = torch.zeros_like(uneven)
    for number, length in enumerate(lengths):
        uneven[number, :length] = torch.arange(length) % 250 + 9
        mask[number, :length] = 1
    both = [
        edit_tokens(p, uneven, attention_mask=mask, policy=AGGRESSIVE).input_ids
        for p in (sharded, plain)
    ]
    found["another number of passes"] = torch.equal(*both)

    make_llama(3).save_pretrained(folder / "new")  # which writes on rank 0 only
    torch.distributed.barrier()
    sources = {
        "state": make_llama(4).state_dict(),
        "folder": folder / "new",
        "live": LiveWeights(shard(make_llama(5).train())),
    }
    for name, source in sources.items():
        parameters = list(sharded.model.parameters())
        sharded.swap(source)
        plain.swap(source)
        found[f"swap {name}"] = edits(sharded, rows) == edits(plain, rows)
        now = list(sharded.model.parameters())
        found[f"in place {name}"] = all(a is b for a, b in zip(parameters, now, strict=True))
    expected = Prior(make_llama(5), TOKENIZER)
    found["live weights"] = edits(plain, rows) == edits(expected, rows)
    save_prior(sharded, folder / "saved", writes=rank == 0)
    torch.distributed.barrier()
    found["saved"] = Prior.from_pretrained(folder / "saved").fingerprint == expected.fingerprint
    return found


def journaled(rows, folder, rank) -> dict:
    """In the first batch all is new; in the second, to rank 0 only."""
    sharded = Prior(shard(make_llama()), TOKENIZER)
    plain = Prior(make_llama(), TOKENIZER)
    collator = ToEditCollator(
        sharded, AGGRESSIVE, base_collator=dict, journal=Journal(folder / "journal")
    )
    order = [rows[0], rows[1] if rank == 0 else rows[0], rows[1]]
    got = [collator({"input_ids": ids})["input_ids"].tolist() for ids in order]
    return {"rows": got == edits(plain, order), "replayed": collator.stats["replayed"] > 0}


def shared(rows, folder, rank) -> dict:
    def train(edited):
        torch.manual_seed(0)
        model = shard(get_peft_model(make_llama(5), lora(lora_dropout=0.1)).train())
        prior = Prior.shared(model, tokenizer=TOKENIZER) if edited else None
        refresher = Refresher(prior, 2) if edited else None
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
        losses, got, snapshot = [], [], None
        for step in range(4):
            ids = rows[step % len(rows)]
            if edited:
                got.append(edit_tokens(prior, ids, policy=AGGRESSIVE).input_ids.tolist())
            if edited and step == 2:
                assert refresher.swap_live(model, step)
                snapshot = logprobs(prior, rows)
            torch.manual_seed(step)
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses, got, prior, snapshot

    losses, got, prior, snapshot = train(True)
    base = Prior(make_llama(5), TOKENIZER)
    found = {
        "training undisturbed": losses == train(False)[0],
        "edits": got[:3] == edits(base, [rows[n % len(rows)] for n in range(3)]),
        "generation": prior.generation == 1,
        "frozen": close(logprobs(prior, rows), snapshot),
        "moved": not close(logprobs(prior, rows), logprobs(base, rows)),
    }
    save_prior(prior, folder / "adapter", writes=rank == 0)
    torch.distributed.barrier()
    other = Prior.shared(get_peft_model(make_llama(5), lora()), tokenizer=TOKENIZER)
    other.swap(folder / "adapter")
    found["saved"] = close(logprobs(other, rows), logprobs(prior, rows))
    return found


def find(folder: pathlib.Path) -> dict[str, dict[str, bool]]:
    """Each scenario's findings; the ranks are connected."""
    rank = torch.distributed.get_rank()
    rows = [torch.tensor([ids]) for ids in documents(3, seed=rank)]
    scenarios = separate, journaled, shared
    return {scenario.__name__: scenario(rows, folder, rank) for scenario in scenarios}
