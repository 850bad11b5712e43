"""The model of the tiny recipes: trained by steps, kept whole or not at all."""

from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoTokenizer

from toedit_collate import Prior
from toedit_collate.data import demo_model as kept


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kept, "NUM_STEPS", 3)
    return tmp_path / "toedit_collate"


def test_it_is_made_once(cache, capsys, monkeypatch):
    folder = kept.demo_model()
    printed = capsys.readouterr().out
    assert "Training toedit-demo, a small model" in printed
    assert f"It is kept in {folder}; to train it again" in printed
    assert Prior.from_pretrained(folder).tokenizer.chat_template
    monkeypatch.setattr(kept, "_train", pytest.fail)
    assert kept.demo_model() == folder
    assert [path.name for path in cache.iterdir()] == [folder.name]


def test_a_configuration_is_made_without_training(cache, monkeypatch):
    monkeypatch.setattr(kept, "_train", pytest.fail)
    folder = kept.demo_config("toedit-demo-512")
    config = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert config.vocab_size == len(tokenizer) == 512
    assert tokenizer.chat_template
    assert not (folder / "model.safetensors").exists()
    assert kept.demo_config("toedit-demo-512") == folder


def test_it_is_the_configuration_of_the_trained_one(cache):
    model, config = kept.demo_model("toedit-demo-512"), kept.demo_config("toedit-demo-512")
    left_out = {"dtype", "_name_or_path", "architectures"}
    trained, untrained = (
        {k: v for k, v in AutoConfig.from_pretrained(one).to_dict().items() if k not in left_out}
        for one in (model, config)
    )
    assert trained == untrained
    assert (model / "tokenizer.json").read_text() == (config / "tokenizer.json").read_text()
