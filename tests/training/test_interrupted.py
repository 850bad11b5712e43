"""What goes wrong around a run: Ctrl-C, killed workers, vanished checkpoints, older libraries."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import make_llama
from peft import get_peft_model
from safetensors.torch import load_file
from trainees import (
    Recorder,
    dataset,
    documents,
    lora,
    make_prior,
    make_trainer,
    move_adapters,
)

from toedit_collate import Journal, Prior, last_checkpoint
from toedit_collate.prior.adapters import adapter_layers
from toedit_collate.training.checkpoints import reload_adapter
from toedit_collate.training.snapshot import LiveWeights, unwrap_wrappers

TEXTS = documents(8)


def state_of(model):
    """All that scoring with a shared prior switches."""
    return {
        "training": [module.training for module in model.modules()],
        "trained": [parameter.requires_grad for parameter in model.parameters()],
        "adapters": [(x._disable_adapters, x._active_adapter) for x in adapter_layers(model)],
    }


class TestCtrlC:
    """In the middle of the prior's pass."""

    @staticmethod
    def interrupted_at(number, model):
        layer = model.get_base_model().model.layers[0].self_attn.q_proj
        passes = []

        def interrupt(*_):
            if layer.disable_adapters:
                passes.append(1)
                if len(passes) == number:
                    raise KeyboardInterrupt

        return model.get_base_model().model.layers[1].register_forward_hook(interrupt)

    @staticmethod
    def make(folder, tokenizer):
        torch.manual_seed(0)
        model = get_peft_model(make_llama(), lora())
        return make_trainer(
            folder, tokenizer, way="callback", model=model, prior=Prior.shared(model),
            journal=Journal(folder / "journal"), train=dataset(TEXTS),
            save_strategy="steps", save_steps=1,
        )  # fmt: skip

    def test_the_trainee_is_as_before_and_the_run_goes_on(self, tmp_path, tokenizer):
        whole, _ = self.make(tmp_path / "whole", tokenizer)
        expected = Recorder(whole.model)
        whole.train()

        trainer, collator = self.make(tmp_path / "broken", tokenizer)
        trainer.model.train()
        before = state_of(trainer.model)
        handle = self.interrupted_at(3, trainer.model)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        handle.remove()
        assert state_of(trainer.model) == before
        collator.journal.close()

        resumed, _ = self.make(tmp_path / "broken", tokenizer)
        recorder = Recorder(resumed.model)
        checkpoint = last_checkpoint(tmp_path / "broken")
        assert checkpoint.endswith("checkpoint-2")
        resumed.train(resume_from_checkpoint=checkpoint)
        assert recorder.rows(training=True) == expected.rows(training=True)[4:]
        for name, weight in whole.model.state_dict().items():
            assert torch.equal(weight, resumed.model.state_dict()[name]), name


class KillsItsWorker(torch.utils.data.Dataset):
    """Its sixth row kills the process that asks for it."""

    def __init__(self, armed):
        self.armed = armed

    def __len__(self):
        return len(TEXTS)

    def __getitem__(self, index):
        if self.armed and index == 5 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"input_ids": TEXTS[index]}


@pytest.mark.slow  # PyTorch's signal handler may raise in any code, also in pytest's own
def test_a_killed_worker(tmp_path, tokenizer):
    """The run ends with PyTorch's error; collator and journal are good for the next."""
    prior, folder = make_prior(tokenizer), tmp_path / "journal"
    given = {}
    for armed in (True, False):
        trainer, collator = make_trainer(
            tmp_path, tokenizer, way="both", prior=prior, journal=Journal(folder),
            train=KillsItsWorker(armed), dataloader_num_workers=1,
        )  # fmt: skip
        recorder = Recorder(trainer.model)
        if armed:
            with pytest.raises(RuntimeError, match=r"worker.*(killed|exited)"):
                trainer.train()
        else:
            trainer.train()
        given[armed] = recorder.rows(training=True)
        collator.journal.close()
    assert len(given[False]) == len(TEXTS)
    assert given[True] == given[False][: len(given[True])]
    assert all(row not in TEXTS for row in given[False])
    journal = Journal(folder)
    assert sorted(journal.replay(text, 1) for text in TEXTS) == sorted(given[False])


@pytest.mark.parametrize("moment", ["before it is read", "before it is copied"])
def test_a_checkpoint_that_vanishes_at_the_swap(tmp_path, tokenizer, monkeypatch, caplog, moment):
    prepare, taken = Prior.prepare_swap, []

    def prepare_swap(self, source):
        if not isinstance(source, Path):  # the trial at the start
            return prepare(self, source)
        if len(taken) == 1 and moment == "before it is read":
            shutil.rmtree(source)
        taken.append(source)
        prepared = prepare(self, source)
        if len(taken) == 2:
            shutil.rmtree(source)
        return prepared

    monkeypatch.setattr(Prior, "prepare_swap", prepare_swap)
    trainer, collator = make_trainer(
        tmp_path, tokenizer, way="callback", refresh="save", train=dataset(TEXTS), max_steps=6,
        model=make_llama(1), prior=Prior(make_llama(), tokenizer), save_strategy="steps",
        save_steps=2,
    )  # fmt: skip
    trainer.train()
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    gone = moment == "before it is read"
    assert len(errors) == int(gone)
    assert collator.prior.generation == 3 - int(gone)
    assert trainer.state.global_step == 6
    assert all(
        "checkpoint-4" in e and "does not exist" in e and "continues with the old prior" in e
        for e in errors
    )


class TestResumedAdapters:
    """What transformers before 5.23 and PEFT before 0.21 do to the adapter in training."""

    @pytest.fixture
    def checkpoint(self, tmp_path):
        model = move_adapters(get_peft_model(make_llama(), lora()))
        model.add_adapter("toedit_prior", lora(inference_mode=True))
        model.save_pretrained(tmp_path)
        assert (tmp_path / "toedit_prior/adapter_model.safetensors").is_file()
        return tmp_path

    def test_it_is_read_and_trains(self, checkpoint):
        model = get_peft_model(make_llama(), lora())
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=1.0)
        model.load_adapter(checkpoint / "toedit_prior", "toedit_prior", is_trainable=False)
        for parameter in trained:
            parameter.requires_grad_(False)
        reload_adapter(model, checkpoint, optimizer)
        assert all(parameter.requires_grad for parameter in trained)
        assert [p.requires_grad for p in model.parameters()].count(True) == len(trained)
        saved = load_file(checkpoint / "adapter_model.safetensors")
        live = dict(LiveWeights(model))
        assert live.keys() == saved.keys()
        assert all(torch.equal(live[name], saved[name]) for name in saved)
        assert any(bool(saved[name].any()) for name in saved if "lora_B" in name)

    def test_a_resumed_run_with_a_trainer_that_reads_subfolders_only(
        self, tmp_path, tokenizer, monkeypatch
    ):
        def make():
            torch.manual_seed(0)
            model = get_peft_model(make_llama(), lora())
            trainer, _ = make_trainer(
                tmp_path, tokenizer, way="callback", model=model, prior=Prior.shared(model),
                refresh=2, train=dataset(TEXTS), save_strategy="steps", save_steps=3,
                learning_rate=1e-1,
            )  # fmt: skip
            return trainer

        whole = make()
        whole.train()
        expected = dict(LiveWeights(whole.model))
        resumed = make()

        def load(self, folder, model=None):
            model = model or self.model
            model.load_adapter(f"{folder}/toedit_prior", "toedit_prior", is_trainable=False)

        monkeypatch.setattr(type(resumed), "_load_from_checkpoint", load)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        ours = dict(LiveWeights(resumed.model))
        assert all(torch.equal(ours[name], expected[name]) for name in expected)


class TestWrappers:
    @pytest.fixture
    def group(self, tmp_path):
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
        )
        yield
        torch.distributed.destroy_process_group()

    @pytest.mark.parametrize("with_adapter", [False, True])
    @pytest.mark.parametrize("outer", ["DDP", "compile"])
    def test_ddp_and_compile_in_both_orders(self, group, outer, with_adapter):
        wrap = [torch.nn.parallel.DistributedDataParallel, torch.compile]
        model = get_peft_model(make_llama(), lora()) if with_adapter else make_llama()
        wrapped = model
        for one in wrap if outer == "compile" else wrap[::-1]:
            wrapped = one(wrapped)
        assert unwrap_wrappers(wrapped) is model
        assert list(LiveWeights(wrapped)) == list(LiveWeights(model))

    @pytest.mark.parametrize("with_ddp", [False, True])
    def test_a_trainee_with_a_compiled_layer(self, group, with_ddp):
        """Accelerate 1.11 can't unwrap one (KeyError: '_orig_mod')."""
        model = make_llama()
        model.model.layers[0] = torch.compile(model.model.layers[0])
        wrapped = torch.nn.parallel.DistributedDataParallel(model) if with_ddp else model
        assert unwrap_wrappers(wrapped) is model
