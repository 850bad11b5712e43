"""The world of a study: rows of tokens, the prior, what it decided, and fresh trainees."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from common.precision import fast_dtype, fast_precision
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

from toedit_collate.config.console import quiet
from toedit_collate.data import Preparation, examples, format_of, open_data
from toedit_collate.data.files import write_json
from toedit_collate.errors import UnusableError
from toedit_collate.prior.base import BasePrior
from toedit_collate.prior.fingerprint import fingerprint
from toedit_collate.prior.prior import Prior
from toedit_collate.stores.cache import DecisionCache

from .settings import Rows, WorldSettings

_ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class TokenRows:
    """Rows of tokens: `input_ids` and `labels` (-100: no loss), both (N, T) int64.

    Attributes:
        is_padded: rows are conversations that end with padding, which has no labels.
    """

    input_ids: Tensor
    labels: Tensor
    is_padded: bool = False

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, places: Any) -> TokenRows:
        """Some rows, by a slice, a list or a tensor of their places."""
        return TokenRows(self.input_ids[places], self.labels[places], self.is_padded)

    def split(self, size: int) -> list[TokenRows]:
        """Parts of `size` rows; the last may have fewer."""
        return [self[first : first + size] for first in range(0, len(self), size)]

    @classmethod
    def join(cls, parts: list[TokenRows]) -> TokenRows:
        """The rows of all parts, one after another."""
        return cls(
            torch.cat([part.input_ids for part in parts]),
            torch.cat([part.labels for part in parts]),
            any(part.is_padded for part in parts),
        )

    @property
    def attention_mask(self) -> Tensor:
        """1 up to each row's last labelled token, (N, T) int64.

        The padding id does not tell where a row ends: it is often the end token of each turn.
        """
        labelled = (self.labels != -100).long()
        return (labelled.flip(1).cumsum(1).flip(1) > 0).long()


class World:
    """Data, prior and trainee of a study; loaded once in a process.

    Args:
        settings: of the study.
        data: the folder of its files.
        prior: folder or hub id of the prior, as it came.
        prepared: folders of models that were trained beforehand (`prepare_world`), "prior" and
            "trainee".
        trainee: folder or hub id of the model that is trained, if it is another than the prior;
            the prior may have another tokenizer.

    Attributes:
        cache: of the decisions of all priors and policies, so that each is made once.
        device: where models are trained and priors score: the GPU, if there is one.
    """

    def __init__(
        self,
        settings: WorldSettings,
        data: Path,
        prior: str,
        prepared: dict[str, Path] | None = None,
        trainee: str | None = None,
    ) -> None:
        self.settings = settings
        self.data = data
        self.prior_name = prior
        self.prepared = prepared or {}
        self.trainee_name = trainee or prior
        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.trainee_name)
        self.cache = DecisionCache()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._files: dict[str, TokenRows] = {}
        self._hidden: dict[str, Tensor] = {}

    @cached_property
    def prior(self) -> BasePrior:
        """The frozen prior."""
        return self.load_prior(str(self.prepared.get("prior", self.prior_name)))

    def load_prior(self, name: str) -> BasePrior:
        """A prior of this world, aligned to the trainee's tokenizer if it has another."""
        dtype = getattr(torch, self.settings.prior_dtype)
        with quiet():
            prior = Prior.from_pretrained(name, dtype=dtype, device=self.device)
        return prior.aligned_to(self.tokenizer)

    def rows(self, wanted: Rows) -> TokenRows:
        """Some rows of a file.

        Raises:
            UnusableError: the file has fewer.
        """
        every = self._file(wanted.file)
        first, last = wanted.rows
        if not 0 <= first < last <= len(every):
            raise UnusableError(
                f"{self.data / wanted.file}: rows {first} to {last} are wanted, and it has "
                f"{len(every)} of {self.settings.row_length} tokens; change `rows` of the study"
            )
        return every[first:last]

    def new_trainee(self, seed: int, lora_rank: int = 0) -> nn.Module:
        """A model to train: prepared, from random weights, or with the weights of the prior.

        Args:
            seed: of the random weights.
            lora_rank: of an adapter on all linear layers; 0: all weights are trained.
        """
        set_seed(seed)
        model: Any
        with quiet():
            if self.settings.trainee is None or "trainee" in self.prepared:
                name = str(self.prepared.get("trainee", self.trainee_name))
                model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
                _keep_layers(model, self.settings.keep_layers)
            else:
                config = AutoConfig.from_pretrained(self.trainee_name, **self.settings.trainee)
                model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            if lora_rank:
                from peft import LoraConfig, get_peft_model

                lora = LoraConfig(
                    r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear"
                )
                model = get_peft_model(model, lora)
        trainee: nn.Module = model.to(self.device)
        return trainee

    def check_output(self, output: Path) -> None:
        """See that the runs in a folder were made with this prior, these data and this precision.

        Raises:
            UnusableError: they were not.
        """
        own = self.settings
        length, replay = own.row_length, [] if own.replay is None else [own.replay]
        wanted = [own.train, own.validation, own.test, *own.others.values(), *replay]
        precision = str(fast_dtype(self.device)).removeprefix("torch.")
        now = {"prior": self.prior.fingerprint, "precision": precision}
        for one in wanted:
            now[f"{one.file} in rows of {length} tokens"] = self._digest(one.file)
        if "trainee" in self.prepared or self.trainee_name != self.prior_name:
            now["trainee before training"] = fingerprint(self.new_trainee(0), [])
        path = output / "made_with.json"
        there = json.loads(path.read_text()) if path.exists() else {}
        for name, value in now.items():
            if there.get(name, value) != value:
                raise UnusableError(
                    f"--output {output}: its runs were made with another {name} (it is {value} "
                    f"now, and was {there[name]}); name another folder, or remove that one"
                )
        write_json(path, {**there, **now})

    def hidden_of(self, rows: TokenRows) -> Tensor:
        """What the prior's backbone gives for rows, (N, T, H) in bfloat16 or float32; kept.

        Raises:
            ValueError: the prior has another tokenizer than the trainee.
        """
        key = _digest_of(rows)
        if key in self._hidden:
            return self._hidden[key]
        if not isinstance(self.prior, Prior):
            raise ValueError(
                f"kl_weight and on_policy need a prior with the trainee's tokenizer, and that of "
                f"{self.prior_name} is another; use a policy"
            )
        backbone: Any = self.prior.model.base_model
        parts = []
        with torch.no_grad(), fast_precision(self.device):
            for ids in rows.input_ids.to(self.device).split(_ROWS_AT_ONCE):
                hidden = backbone(input_ids=ids, use_cache=False).last_hidden_state
                parts.append(hidden.to(fast_dtype(self.device)))
        self._hidden = {key: torch.cat(parts)}
        return self._hidden[key]

    def prior_of(self, model: nn.Module) -> Prior:
        """A copy of a model as a prior with this world's tokenizer."""
        return Prior(copy.deepcopy(model), self.tokenizer)

    def _digest(self, name: str) -> str:
        """Of the tokens themselves: text that is read in another way makes other runs."""
        return _digest_of(self._file(name))

    def _file(self, name: str) -> TokenRows:
        """All rows of a file: documents one after another, or one conversation each, padded."""
        if name in self._files:
            return self._files[name]
        data = open_data(self.data / name, option="--data")
        length, text = self.settings.row_length, list[int]()
        chats: list[tuple[list[int], list[int]]] = []
        first = next(data.batches()).rows[0]
        preparation = Preparation(assistant_only_loss="messages" in first)
        for one in examples(data, self.tokenizer, preparation):
            if format_of(one.row) == ("text",):  # ends with its end token already
                text += one.ids
            elif len(one.ids) <= length:
                chats.append((one.ids, one.labels))
        if chats:
            ids = torch.full((len(chats), length), self.tokenizer.pad_token_id)
            labels = torch.full((len(chats), length), -100)
            for place, (tokens, wanted) in enumerate(chats):
                ids[place, : len(tokens)] = torch.tensor(tokens)
                labels[place, : len(wanted)] = torch.tensor(wanted)
            self._files[name] = TokenRows(ids, labels, is_padded=True)
        else:
            windows = torch.tensor(text[: len(text) // length * length]).view(-1, length)
            self._files[name] = TokenRows(windows, windows)
        return self._files[name]


def _keep_layers(model: Any, numbers: list[int] | None) -> None:
    if numbers is None:
        return
    layers = model.get_decoder().layers
    model.get_decoder().layers = nn.ModuleList(layers[number] for number in numbers)
    for place, layer in enumerate(model.get_decoder().layers):
        layer.self_attn.layer_idx = place
    model.config.num_hidden_layers = len(numbers)


def _digest_of(rows: TokenRows) -> str:
    content = torch.stack([rows.input_ids, rows.labels]).numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:16]
