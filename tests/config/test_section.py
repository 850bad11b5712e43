"""The section `toedit:` of other frameworks' YAML, and what reads it there, without them."""

import sys

import pytest

from toedit_collate import EditPolicy
from toedit_collate.config.section import read_section
from toedit_collate.errors import UnusableError
from toedit_collate.integrations.axolotl import ToEditArgs, ToEditPlugin
from toedit_collate.integrations.llamafactory import main, read_config


def test_an_empty_section_is_the_paper_with_a_shared_prior():
    for section in (None, {}):
        edit = read_section(section)
        assert (edit.policy(), edit.prior) == (EditPolicy.paper(), "shared")


def test_every_field_has_its_place():
    edit = read_section(
        {
            "policy": "reference_code", "threshold": 0.9, "protected_token_ids": [7], "seed": 3,
            "prior": "folder", "prior_quantization": "8bit", "journal": True, "refresh": 10,
            "cache": "decisions",
        }
    )  # fmt: skip
    policy = edit.policy()
    assert (policy.threshold, policy.temperature, policy.seed) == (0.9, 1.5, 3)
    assert policy.protected_token_ids == (7,)
    assert (edit.prior, edit.prior_quantization, edit.journal) == ("folder", "8bit", True)
    assert (edit.refresh_when, edit.cache_path) == (10, "decisions")


def test_numbers_without_a_point():
    """YAML reads `1e-4` as text."""
    policy = read_section({"threshold": "1e-4", "drop_below": "1e-5", "temperature": 1.5}).policy()
    assert (policy.threshold, policy.drop_below, policy.temperature) == (1e-4, 1e-5, 1.5)


def test_cache_may_be_true():
    assert read_section({"cache": True}).cache_path is True


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"treshold": 0.9}, "'treshold' is not a field; did you mean threshold?"),
        ({"threshold": "high"}, "threshold must be a number, got 'high'"),
        ({"threshold": 99}, r"toedit: threshold .*99"),
        ({"top_k": True}, "top_k must be a whole number, got True"),
        ({"journal": "yes"}, "'journal' expected bool, got str .*yes"),
        ({"prior_quantization": "2bit"}, "'prior_quantization' .*2bit.*8bit', '4bit', 'int8"),
        ({"policy": "papr"}, "'policy' expected one of .*paper.*, got papr"),
        ({"protected_token_ids": [-7]}, "must be whole numbers from 0 on, got"),
        ({"refresh": "often"}, "refresh must be .*a positive number of steps"),
        (["paper"], "toedit must be a mapping"),
    ],
)
def test_errors_say_what_is_wrong(section, message):
    with pytest.raises(ValueError, match=message):
        read_section(section)


class TestAxolotl:
    def test_the_plugin_names_its_schema(self):
        module, name = ToEditPlugin().get_input_args().rsplit(".", 1)
        assert getattr(sys.modules[module], name) is ToEditArgs

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"toedit": {"tresh": 1}}, "did you mean threshold"),
            ({}, "set adapter: lora"),
            ({"adapter": "lora", "rl": "kto"}, "rl: kto trains on something else"),
        ],
    )
    def test_a_config_is_refused(self, config, message):
        with pytest.raises(ValueError, match=message):
            ToEditArgs.model_validate(config)

    def test_a_config_is_taken(self):
        section = {"prior": "folder", "top_k": 4}
        assert ToEditArgs.model_validate({"toedit": section}).toedit == section
        ToEditArgs.model_validate({"adapter": "qlora"})
        ToEditArgs.model_validate({"toedit": {"policy": "none"}, "rl": "dpo"})


class TestLlamaFactory:
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"stage": "sft"}, "no section toedit"),
            ({"toedit": {"tresh": 1}}, "did you mean threshold"),
            ({"toedit": {}, "stage": "dpo"}, "stage must be pt or sft, got 'dpo'"),
            ({"toedit": {}, "finetuning_type": "full"}, "set finetuning_type: lora"),
            ({"toedit": {}, "use_mca": True}, "remove use_mca"),
        ],
    )
    def test_a_config_is_refused(self, config, message):
        with pytest.raises(UnusableError, match=message):
            read_config(config)

    def test_the_section_is_taken_out(self):
        config = {"toedit": {"prior": "p"}, "stage": "pt", "finetuning_type": "full"}
        rest, edit = read_config(config)
        assert (rest, edit.prior) == ({"stage": "pt", "finetuning_type": "full"}, "p")
        assert "toedit" in config

    def test_usage(self, capsys):
        assert main(["chat"]) == 2
        assert "train FILE.yaml" in capsys.readouterr().err
