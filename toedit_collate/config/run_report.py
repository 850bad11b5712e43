"""What came of one run of training."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RunReport:
    """What came of one run of training.

    Attributes:
        policy: name of its policy; "none": it was not edited.
        seed: of the run, and of the policy's draws where several runs are compared.
        folder: of the run.
        train: of the training: loss (mean, nats per token with a label; absent where no step was
            logged), steps, epochs, seconds.
        edit: counts and shares of the edit pass, as `ToEditCollator.stats` has them, over all
            ranks, since the run was last resumed; empty without editing.
        held_out: name -> perplexity per token.
        tasks: task of lm-evaluation-harness -> metric -> value.
    """

    policy: str
    seed: int
    folder: str
    train: dict[str, float] = field(default_factory=dict)
    edit: dict[str, float] = field(default_factory=dict)
    held_out: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_text(self) -> str:
        """A few lines for a terminal."""
        lines = []
        if self.train:
            said = {"loss": "nats per token", "seconds": "s"}
            parts = (f"{n} {v:,.4g} {said.get(n, '')}".rstrip() for n, v in self.train.items())
            lines.append(", ".join(parts))
        if self.edit:
            edit = self.edit
            lines.append(
                f"edited: {edit['scored']:,} tokens scored, {edit['selected']:,} selected "
                f"({edit['selected_share']:.2%}), {edit['changed']:,} changed "
                f"({edit['changed_share']:.4%})"
            )
            if "aligned_share" in edit:
                lines.append(
                    f"aligned: {edit['aligned_share']:.1%} of the tokens begin where one of the "
                    "prior's begins, and can be scored"
                )
        lines += [
            f"held-out perplexity per token, {name}: {p:.4f}" for name, p in self.held_out.items()
        ]
        for task, metrics in self.tasks.items():
            lines.append(f"{task}: " + ", ".join(f"{n} {v:.4f}" for n, v in metrics.items()))
        return "\n".join([*lines, f"written to {self.folder}"])
