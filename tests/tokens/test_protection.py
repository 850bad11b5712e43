import pytest
import torch
from conftest import likely_ids, make_llama, make_tokenizer

from toedit_collate import EditPolicy, Prior, edit_tokens
from toedit_collate.tokens.protection import special_token_ids, structure_mask, template_sequences

ALL = EditPolicy(region="below", threshold=0.99999, exclude_original=True, scope="all")


@pytest.fixture(scope="module")
def chat_prior(tokenizer):
    return Prior(make_llama(), tokenizer)


def render(tokenizer, *messages):
    messages = [{"role": role, "content": content} for role, content in messages]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return text, tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids


def test_only_what_people_say_is_edited(chat_prior, tokenizer):
    """The markers of the template stay, word for word: `<|im_start|>user` and the line feed."""
    said = ("the river runs past user", "under\nthe old mill", "to the sea", "the wind waits")
    roles = ("user", "assistant", "user", "assistant")
    text, ids = render(tokenizer, *zip(roles, said, strict=True))
    result = edit_tokens(chat_prior, ids, policy=ALL)
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    inside = torch.zeros(len(text), dtype=torch.bool)
    start = 0
    for content in said:
        start = text.index(content, start)
        inside[start : start + len(content)] = True
        start += len(content)
    expected = torch.tensor([[bool(inside[a:b].all()) for a, b in encoded["offset_mapping"]]])
    # The word "user" that somebody says is a token of the template's, but not its run of tokens.
    assert torch.equal(result.changed, expected)


def test_unprotected_everything_but_the_first_token_changes(chat_prior, tokenizer):
    _, ids = render(tokenizer, ("user", "the river"), ("assistant", "runs"))
    result = edit_tokens(chat_prior, ids, policy=ALL.replace(protect_special=False))
    assert result.changed.sum() == ids.numel() - 1


def test_special_tokens_are_not_drawn_either(chat_prior, tokenizer):
    ids = likely_ids(chat_prior.model, 20, 60)
    policy = ALL.replace(sampler="full", temperature=5.0)
    result = edit_tokens(chat_prior, ids, policy=policy)
    assert result.changed.sum() > 1000
    special = torch.tensor(sorted(chat_prior.special_ids))
    assert not torch.isin(result.input_ids, special).any()
    free = edit_tokens(chat_prior, ids, policy=policy.replace(protect_special=False))
    assert torch.isin(free.input_ids, special).any()


def test_special_ids_come_from_tokenizer_and_template(tokenizer):
    assert special_token_ids(None) == set()
    assert special_token_ids(tokenizer) == {0, 1, 2, 3, 4}
    other = make_tokenizer()
    other.add_tokens(["<think>", "plainword"])
    think = other.convert_tokens_to_ids("<think>")
    assert think not in special_token_ids(other)
    other.chat_template = other.chat_template + "{{ '<think>' }}"
    found = special_token_ids(other)
    assert think in found
    assert other.convert_tokens_to_ids("plainword") not in found


def test_templates_of_plain_text_and_odd_ones():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ '### ' + m.role + ':\n' + m.content + '\n\n' }}{% endfor %}"
    )
    runs = [tokenizer.decode(run) for run in template_sequences(tokenizer)]
    assert any("### user:" in run for run in runs)
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    assert template_sequences(tokenizer) == []
    tokenizer.chat_template = None
    assert template_sequences(tokenizer) == []
    assert template_sequences(None) == []


def test_structure_mask_marks_whole_runs_only():
    tokens = torch.tensor([9, 1, 2, 3, 1, 2, 1, 2, 3, 1, 2, 3])
    document = torch.arange(12) // 6
    mask = structure_mask(tokens, document, torch.tensor([9]), [[1, 2, 3], [1] * 13])
    assert mask.long().tolist() == [1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1]


def test_a_run_lies_in_one_document():
    """A packed row is no conversation: the end of one and the beginning of the next are no run."""
    tokens = torch.tensor([5, 1, 2, 3, 1, 2, 3])
    mask = structure_mask(
        tokens, torch.tensor([0, 0, 0, 1, 1, 1, 1]), torch.tensor([9]), [[1, 2, 3]]
    )
    assert mask.long().tolist() == [0, 0, 0, 0, 1, 1, 1]


class TestUserProtection:
    def test_ids(self, prior):
        ids = likely_ids(prior.model, 4, 40)
        policy = ALL.replace(protected_token_ids=tuple(range(5, 150)))
        result = edit_tokens(prior, ids, policy=policy)
        kept = (ids >= 5) & (ids < 150)
        assert kept.any()
        assert torch.equal(result.input_ids[kept], ids[kept])
        assert result.changed[:, 1:][ids[:, 1:] >= 150].all()

    def test_function(self, chat_prior, tokenizer):
        ids = likely_ids(chat_prior.model, 4, 40)
        seen = []

        def protect(input_ids, its_tokenizer):
            seen.append(its_tokenizer)
            return input_ids % 2 == 0

        result = edit_tokens(chat_prior, ids, policy=ALL.replace(protect=protect))
        assert seen == [tokenizer]
        assert torch.equal(result.changed[:, 1:], (ids % 2 == 1)[:, 1:])

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (
                lambda ids, _: ids[:, :3] > 0,
                r"shape of input_ids, \(2, 9\), got torch.bool \(2, 3\)",
            ),
            (lambda ids, _: ids, r"protect must return a bool tensor.*torch.int64"),
            (lambda ids, _: None, r"protect must return a bool tensor.*None"),
        ],
    )
    def test_a_bad_function(self, prior, mask, message):
        with pytest.raises(ValueError, match=message):
            edit_tokens(prior, torch.full((2, 9), 7), policy=ALL.replace(protect=mask))
