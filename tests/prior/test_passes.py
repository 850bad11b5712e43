import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import batches

from toedit_collate.tokens.documents import find_documents
from toedit_collate.tokens.passes import group_by_length, plan_passes


def passes_of(documents, tokens, pass_cost=2048):
    needed = torch.ones(documents.num_documents, dtype=torch.bool)
    return plan_passes(documents, tokens, needed, pass_cost=pass_cost)


@given(batches(), st.sampled_from([0, 4, 10**6]))
@settings(max_examples=200)
def test_rows_hold_every_document_once(batch, pass_cost):
    ids, mask, positions = batch
    documents = find_documents(ids, mask, positions)
    tokens = ids.reshape(-1)[documents.index]
    seen = torch.zeros_like(tokens)
    for one in passes_of(documents, tokens, pass_cost=pass_cost):
        rows, members, cells = one.input_ids, one.members, one.cells
        seen[members] += 1
        assert torch.equal(rows.flatten()[cells], tokens[members])
        assert torch.equal(cells % rows.shape[1], documents.position[members])
        # A row holds one document: as many real tokens as distinct (row, document) pairs.
        row = cells // rows.shape[1]
        assert len(
            set(zip(row.tolist(), documents.document[members].tolist(), strict=True))
        ) == len(rows)
    assert (seen == 1).all()


def test_a_batch_of_similar_lengths_is_scored_in_one_piece():
    mask = torch.ones(8, 64, dtype=torch.long)
    mask[::2, 40:] = 0
    documents = find_documents(torch.ones(8, 64, dtype=torch.long), mask, None)
    assert len(passes_of(documents, torch.ones(documents.num_tokens))) == 1


def test_one_long_and_many_short_documents_are_not_padded_to_the_longest():
    lengths = [2000] + [20] * 100
    positions = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0)
    documents = find_documents(positions, None, positions)
    tokens = positions.flatten()
    cells = sum(one.input_ids.numel() for one in passes_of(documents, tokens))
    assert documents.lengths == lengths
    assert cells < 3 * sum(lengths)  # padded to the longest it would be 50 times as much


@given(st.lists(st.integers(1, 60), max_size=7), st.integers(0, 80))
def test_no_other_grouping_costs_less(lengths, pass_cost):
    def cost(groups):
        return sum(len(g) * max(lengths[i] for i in g) + pass_cost for g in groups)

    def partitions(items):
        if not items:
            yield []
            return
        for smaller in partitions(items[1:]):
            yield [[items[0]], *smaller]
            for i, group in enumerate(smaller):
                yield [*smaller[:i], [items[0], *group], *smaller[i + 1 :]]

    groups = group_by_length(lengths, pass_cost)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    assert all(g == sorted(g) for g in groups)
    assert cost(groups) == min(map(cost, partitions(list(range(len(lengths))))))
