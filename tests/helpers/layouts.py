"""Batches in every layout, for hypothesis."""

import torch
from hypothesis import strategies as st


@st.composite
def batches(draw):
    """A batch of documents: padded on either side, or packed by positions or by the mask."""
    B = draw(st.integers(1, 4))
    T = draw(st.integers(1, 12))
    ids = torch.arange(1, B * T + 1).view(B, T)
    kind = draw(st.sampled_from(["plain", "left", "right", "packed", "packed+mask", "numbers"]))
    mask = positions = None
    if kind in ("left", "right"):
        lengths = torch.tensor(draw(st.lists(st.integers(0, T), min_size=B, max_size=B)))
        mask = (torch.arange(T) < lengths.unsqueeze(1)).long()
        mask = mask.flip(1) if kind == "left" else mask
    if kind in ("packed", "packed+mask", "numbers"):
        flags = st.lists(st.booleans(), min_size=T, max_size=T)
        starts = torch.tensor(draw(st.lists(flags, min_size=B, max_size=B)))
        starts[:, 0] = True
        number = starts.cumsum(-1)
        place = torch.arange(T).expand(B, T)
        positions = place - torch.where(starts, place, 0).cummax(-1).values
        padding = torch.tensor(draw(st.lists(st.integers(1, T), max_size=3)), dtype=torch.long)
        if kind == "packed+mask":  # whole documents are padding
            mask = (~torch.isin(number, padding)).long()
        elif kind == "numbers":
            mask, positions = torch.where(torch.isin(number, padding), 0, number), None
    return ids, mask, positions
