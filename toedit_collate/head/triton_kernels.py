"""The kernel in Triton's language. Only `kernels` imports this file, where triton is installed."""

# mypy: disallow-untyped-defs=False
# (the compiler gives a kernel's arguments their types at its first call)

import triton
import triton.language as tl


@triton.jit
def add_tile_kernel(
    others_ptr,  # (n,) float32, contiguous; changed
    tile_ptr,  # (n, m)
    own_ptr,  # (n,) int64, contiguous
    m,
    stride,  # of the rows of the tile
    BLOCK: tl.constexpr,
):
    """Add the log-sum-exp of a row of the tile, without column `own`, to that of `others`.

    There is one program for each row. Each lane keeps its own running maximum and sum.
    """
    row = tl.program_id(0).to(tl.int64)
    own = tl.load(own_ptr + row)
    lanes = tl.arange(0, BLOCK)
    peak = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, m, BLOCK):
        columns = start + lanes
        inside = columns < m
        x = tl.load(tile_ptr + row * stride + columns, mask=inside, other=-float("inf"))
        x = tl.where(columns == own, -float("inf"), x.to(tl.float32))
        new = tl.maximum(peak, x)
        # tl.maximum passes over NaN, this sum doesn't.
        total = total * tl.exp(peak - _finite(new)) + tl.exp(x - _finite(new))
        peak = new
    shift = _finite(tl.max(peak, 0))
    logsumexp = shift + tl.log(tl.sum(total * tl.exp(peak - shift), 0))
    before = tl.load(others_ptr + row)
    shift = _finite(tl.maximum(before, logsumexp))
    both = tl.exp(before - shift) + tl.exp(logsumexp - shift)
    tl.store(others_ptr + row, shift + tl.log(both))


@triton.jit
def _finite(x):
    """Replace infinity by 0: inf - inf would be NaN, where the sum is 0 or infinite."""
    return tl.where(tl.abs(x) == float("inf"), 0.0, x)
