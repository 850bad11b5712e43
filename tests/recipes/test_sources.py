"""`datasets:` in a recipe: edited and raw sources in one run."""

import json
import pathlib

import pytest
from common.arguments import DataArguments
from running import ON_CPU, STRONG, make_files, metrics, options, run_recipe
from seen_rows import watch_rows

SHAPES = {
    "wrapped": ("cpt", {"packing": "true", "packing_strategy": "wrapped", "max_length": 32}),
    "bfd": ("cpt", {"packing": "true", "packing_strategy": "bfd_split", "max_length": 32}),
    "padded, workers": ("cpt", {"dataloader_num_workers": 2, "max_length": 64}),
    "answers": ("sft_lora", {"use_peft": "true", "lora_target_modules": "all-linear"}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))


def sources(first, second):
    return json.dumps([{"name": first, "weight": 1}, {"name": second, "weight": 2, "edit": False}])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_raw_source_is_trained_on_as_it_is(files, tmp_path, capsys, shape):
    script, settings = SHAPES[shape]
    data = files.chat if shape == "answers" else files.docs
    raw = tmp_path / "raw.jsonl"
    raw.write_text("\n".join(pathlib.Path(data).read_text().splitlines()[::-1]))
    words = options(
        **ON_CPU, **STRONG, **settings, model_name_or_path=files.model, prior=files.model,
        datasets=sources(data, str(raw)), output_dir=tmp_path / "out", journal="true",
        per_device_train_batch_size=4, num_train_epochs=1,
    )  # fmt: skip
    with watch_rows() as seen:
        run_recipe(script, *words)
    edit = metrics(tmp_path / "out")["edit"]
    assert edit["changed"] > 0
    assert edit["raw"] > 0
    assert edit["raw_changed"] == 0
    assert seen.trained
    assert f"edited 0 of {edit['raw']:,} raw tokens" in capsys.readouterr().out


def test_pretraining_takes_sources(files, tmp_path):
    run_recipe("pretrain", *options(
        **ON_CPU, **STRONG, config_name=files.model, prior=files.model, packing="true",
        packing_strategy="wrapped", max_length=32, per_device_train_batch_size=4, max_steps=4,
        datasets=sources(files.docs, files.docs), output_dir=tmp_path / "out",
    ))  # fmt: skip
    edit = metrics(tmp_path / "out")["edit"]
    assert edit["raw"] > 0
    assert (edit["raw_changed"], edit["changed"] > 0) == (0, True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"datasets": "[]"}, "must be a list of sources"),
        ({"datasets": "{name: a}"}, "must be a list of sources"),
        ({"datasets": [{"weight": 1}]}, "must be a mapping with name"),
        ({"datasets": [{"name": "a", "share": 1}]}, "must be a mapping with name"),
        ({"datasets": [{"name": "a", "weight": 0}]}, "weight of 'a' must be a number above 0"),
        ({"datasets": [{"name": "a", "edit": "no"}]}, "edit of 'a' must be true or false"),
        ({"datasets": [{"name": "a"}], "dataset_name": "b"}, "exclude each other"),
    ],
)
def test_wrong_sources_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(**given)
