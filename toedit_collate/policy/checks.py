"""What a policy's fields refuse, and what is said then."""

from __future__ import annotations

from typing import Any


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise unless the value is one of these words."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def require_number(name: str, value: Any) -> float:
    """The value; raise unless it is a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return value


def require_probability(name: str, value: object) -> None:
    """Raise unless the value lies strictly between 0 and 1."""
    if not 0 < require_number(name, value) < 1:
        raise ValueError(
            f"{name} must lie strictly between 0 and 1, got {value!r}; it is a probability: "
            "write 0.99 for 99 %"
        )


def require_int(name: str, value: object, *, minimum: int, mend: str) -> None:
    """Raise unless the value is a whole number, and large enough; `mend` says what to write."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}; {mend}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}; {mend}")


def as_token_ids(value: Any) -> tuple[int, ...]:
    """The value of `protected_token_ids` as a tuple; raise unless it lists token ids."""
    try:
        ids = tuple(value)
    except TypeError:
        raise TypeError(
            f"protected_token_ids must be a list of token ids, got {value!r}; write (5,) for one id"
        ) from None
    for token_id in ids:
        require_int("protected_token_ids", token_id, minimum=0, mend="pass token ids")
    return ids
