"""How commands open priors and tokenizers by name."""

import pytest

from toedit_collate.config import priors


@pytest.mark.parametrize(
    "open_by_name", [priors.open_prior, lambda n: priors.open_tokenizer(n, "")]
)
def test_the_demo_models_are_never_looked_up_on_the_hub(monkeypatch, open_by_name):
    seen = []

    def folder_of(name, **_):
        seen.append(name)
        raise OSError("not here")

    monkeypatch.setattr(priors, "demo_model", lambda name: f"/folder/of/{name}")
    monkeypatch.setattr(priors.Prior, "from_pretrained", folder_of)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", folder_of)
    with pytest.raises(priors.UnusableError, match="can't be loaded"):
        open_by_name("toedit-demo")
    assert seen == ["/folder/of/toedit-demo"]
