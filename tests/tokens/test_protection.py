import pytest
import torch
from conftest import likely_ids, make_llama

from toedit_collate import EditPolicy, Prior, edit_tokens

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
    contents = ("the river runs past user", "under\nthe old mill", "to the sea", "the wind waits")
    roles = ("user", "assistant", "user", "assistant")
    text, ids = render(tokenizer, *zip(roles, contents, strict=True))
    result = edit_tokens(chat_prior, ids, policy=ALL)
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    inside = torch.zeros(len(text), dtype=torch.bool)
    start = 0
    for content in contents:
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
                r"shaped like input_ids, \(2, 9\), got torch.bool \(2, 3\)",
            ),
            (lambda ids, _: ids, r"protect must return a bool tensor.*torch.int64"),
            (lambda ids, _: None, r"protect must return a bool tensor.*None"),
        ],
    )
    def test_a_bad_function(self, prior, mask, message):
        with pytest.raises(ValueError, match=message):
            edit_tokens(prior, torch.full((2, 9), 7), policy=ALL.replace(protect=mask))
