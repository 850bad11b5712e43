"""The kernels in Triton's language; only `launch` imports this file, where triton is installed."""

# mypy: disallow-untyped-defs=False
# (the compiler gives a kernel's arguments their types at its first call)

import os

import triton
import triton.language as tl

# Triton's interpreter multiplies bf16 matrices wrongly, and cuts bits off where a GPU rounds.
_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def _round(x, dtype: tl.constexpr):
    """To `dtype` and back: float32 to float32."""
    if _INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)  # to nearest, ties to even
        return (bits & -0x10000).to(tl.float32, bitcast=True)
    return x.to(dtype).to(tl.float32)


@triton.jit
def _finish(raw, scale, softcap, dtype: tl.constexpr):
    """From W h + b to logits, in float32: the steps of `Head`, each rounded to the model's dtype.

    A model in bf16 has logits in bf16. Finer ones would give another P than the model itself does.
    """
    raw = _round(raw, dtype)
    if scale is not None:
        raw = _round(raw * scale, dtype)
    if softcap is not None:
        x = _round(raw / softcap, dtype)
        tanh = _round(2 * tl.sigmoid(2 * x) - 1, dtype)
        raw = _round(tanh * softcap, dtype)
    return raw


@triton.jit(do_not_specialize=["n"])
def observed_logits_kernel(
    hidden_ptr,  # (n, D)
    weight_ptr,  # (V, D)
    bias_ptr,  # (V,) or None
    ids_ptr,  # (n,) int64
    out_ptr,  # (n,) float32
    n,
    D,
    stride_hidden_n,
    stride_hidden_d,
    stride_weight_v,
    stride_weight_d,
    scale,  # or None
    softcap,  # or None
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The logit of one id per row. One program for BLOCK_M rows."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = rows < n
    ids = tl.load(ids_ptr + rows, mask=valid, other=0)
    h_ptrs = hidden_ptr + rows[:, None] * stride_hidden_n
    w_ptrs = weight_ptr + ids[:, None] * stride_weight_v
    products = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = (start + tl.arange(0, BLOCK_D))[None, :].to(tl.int64)
        mask = valid[:, None] & (d < D)
        h = tl.load(h_ptrs + d * stride_hidden_d, mask=mask, other=0.0)
        w = tl.load(w_ptrs + d * stride_weight_d, mask=mask, other=0.0)
        products += h.to(tl.float32) * w.to(tl.float32)
    raw = tl.sum(products, 1)
    if bias_ptr is not None:
        raw += tl.load(bias_ptr + ids, mask=valid, other=0.0).to(tl.float32)
    logits = _finish(raw, scale, softcap, weight_ptr.dtype.element_ty)
    tl.store(out_ptr + rows, logits, mask=valid)


@triton.jit(do_not_specialize=["n"])
def others_logsumexp_kernel(
    hidden_ptr,  # (n, D)
    weight_ptr,  # (V, D)
    bias_ptr,  # (V,) or None
    ids_ptr,  # (n,) int64: the observed ids, which are left out of the sums
    rows_ptr,  # (n,) int64: the first `count` of them are visited; None: all rows
    count_ptr,  # int64, on the device; None: all rows
    columns_ptr,  # (num_columns,) int64: ids to sum over; None: those in [0, num_columns)
    out_ptr,  # (splits, n) float32
    n,
    num_columns,
    D,
    columns_per_split,
    stride_hidden_n,
    stride_hidden_d,
    stride_weight_v,
    stride_weight_d,
    scale,  # or None
    softcap,  # or None
    EVEN_D: tl.constexpr,  # BLOCK_D divides D
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Log-sum-exp of the logits of some ids, the observed one left out.

    One program for BLOCK_M rows and one split of the ids. It keeps a tile of logits in registers
    and folds it into a running maximum and sum, so no logit is ever written to memory.
    """
    first_slot = tl.program_id(0) * BLOCK_M
    slots = first_slot + tl.arange(0, BLOCK_M)
    if rows_ptr is None:
        valid = slots < n
        rows = tl.where(valid, slots, 0).to(tl.int64)
    else:
        # The grid is as large as if all rows were still open: only the device knows how many are.
        count = tl.load(count_ptr)
        if first_slot >= count:
            return
        valid = slots < count
        rows = tl.load(rows_ptr + slots, mask=valid, other=0)
    own = tl.load(ids_ptr + rows).to(tl.int32)
    d = tl.arange(0, BLOCK_D)
    h_start = hidden_ptr + rows[:, None] * stride_hidden_n + d[None, :] * stride_hidden_d

    split = tl.program_id(1)
    begin = split * columns_per_split
    end = tl.minimum(begin + columns_per_split, num_columns)
    running_max = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    running_sum = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(begin, end, BLOCK_V):
        places = start + tl.arange(0, BLOCK_V)
        inside = places < end
        # Past the end, some id that exists: cheaper than a mask on every load.
        columns = tl.minimum(places, end - 1)
        if columns_ptr is not None:
            columns = tl.load(columns_ptr + columns).to(tl.int32)
        h_ptrs = h_start
        w_ptrs = weight_ptr + columns.to(tl.int64)[None, :] * stride_weight_v
        w_ptrs += d[:, None] * stride_weight_d
        raw = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
        for k in range(0, D, BLOCK_D):
            if EVEN_D:
                h = tl.load(h_ptrs)
                w = tl.load(w_ptrs)
            else:
                h = tl.load(h_ptrs, mask=d[None, :] < D - k, other=0.0)
                w = tl.load(w_ptrs, mask=d[:, None] < D - k, other=0.0)
            if _INTERPRETED:
                h, w = h.to(tl.float32), w.to(tl.float32)
            # "ieee": a float32 model is not to be rounded to tf32. No effect on 16-bit inputs.
            raw = tl.dot(h, w, raw, input_precision="ieee")
            h_ptrs += BLOCK_D * stride_hidden_d
            w_ptrs += BLOCK_D * stride_weight_d
        if bias_ptr is not None:
            raw += tl.load(bias_ptr + columns).to(tl.float32)[None, :]
        logits = _finish(raw, scale, softcap, weight_ptr.dtype.element_ty)
        counts = inside[None, :] & (columns[None, :] != own[:, None])
        logits = tl.where(counts, logits, -float("inf"))

        new_max = tl.maximum(running_max, tl.max(logits, 1))
        # inf - inf is NaN: neither "no id so far" (-inf) nor an overflow of fp16 (inf) is that.
        same = running_max == new_max
        running_sum *= tl.where(same, 1.0, tl.exp(running_max - new_max))
        # tl.max passes over NaN, this sum doesn't.
        running_sum += tl.sum(tl.exp(logits - _finite(new_max)[:, None]), 1)
        running_max = new_max
    logsumexp = _finite(running_max) + tl.log(running_sum)
    tl.store(out_ptr + split.to(tl.int64) * n + rows, logsumexp, mask=valid)


@triton.jit
def _finite(x):
    return tl.where(tl.abs(x) == float("inf"), 0.0, x)
