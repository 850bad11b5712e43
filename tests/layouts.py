"""Batches in every layout, for hypothesis."""

import torch
from hypothesis import strategies as st


@st.composite
def batches(draw):
    """A batch of documents: padded on either side, packed, or with padding anywhere."""
    B = draw(st.integers(1, 4))
    T = draw(st.integers(1, 12))
    ids = torch.arange(1, B * T + 1).view(B, T)
    kind = draw(st.sampled_from(["plain", "left", "right", "packed", "packed+mask", "holes"]))
    mask = positions = None
    if kind in ("left", "right"):
        lengths = torch.tensor(draw(st.lists(st.integers(0, T), min_size=B, max_size=B)))
        mask = (torch.arange(T) < lengths.unsqueeze(1)).long()
        mask = mask.flip(1) if kind == "left" else mask
    if kind == "holes" or kind == "packed+mask":
        mask = torch.tensor(
            draw(
                st.lists(
                    st.lists(st.integers(0, 1), min_size=T, max_size=T), min_size=B, max_size=B
                )
            )
        )
    if kind in ("packed", "packed+mask"):
        starts = torch.tensor(
            draw(st.lists(st.lists(st.booleans(), min_size=T, max_size=T), min_size=B, max_size=B))
        )
        starts[:, 0] = True
        place = torch.arange(T).expand(B, T)
        positions = place - torch.where(starts, place, 0).cummax(-1).values
    return ids, mask, positions
