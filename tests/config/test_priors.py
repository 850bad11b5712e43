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


OPEN = [priors.open_prior, lambda name: priors.open_tokenizer(name, "")]
NOT_THERE = ["./none", "/none/x", "C:\\none", "s3://b/m", "hf://a/b", "a/b/c", "", "~/none", "file"]


@pytest.mark.parametrize("name", NOT_THERE)
@pytest.mark.parametrize(
    "open_by_name", [priors.open_prior, lambda n: priors.open_tokenizer(n, "")]
)
def test_paths_are_never_looked_up_on_the_hub(tmp_path, monkeypatch, name, open_by_name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(priors.Prior, "from_pretrained", pytest.fail)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", pytest.fail)
    with pytest.raises(priors.UnusableError, match=r"can't be loaded \(there is no such folder\)"):
        open_by_name(name)


@pytest.mark.parametrize("name", ["pri:or", "5% x", "a[1]", "C:\\x"])
def test_folders_with_odd_names_are_opened(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert priors.folder_of(name, "") == name
