"""The kernel, compiled for GPUs that are not here: it spills no registers, and loads are wide.

Triton brings its compilers, ptxas and cuobjdump; no GPU and no driver is asked.
"""

import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from toedit_collate.head import kernels  # noqa: E402
from toedit_collate.head.triton_kernels import add_tile_kernel  # noqa: E402

ARGUMENTS = {"others_ptr": "*fp32", "own_ptr": "*i64", "m": "i32", "stride": "i32"}


def compiled(target, dtype):
    """As for a tile whose address and width are multiples of 16, as widths of 64 ids are."""
    aligned = {(number,): [["tt.divisibility", 16]] for number in range(5)}
    signature = {"others_ptr": "*fp32", "tile_ptr": f"*{dtype}", **ARGUMENTS, "BLOCK": "constexpr"}
    source = ASTSource(
        add_tile_kernel, signature, constexprs={"BLOCK": kernels.BLOCK}, attrs=aligned
    )
    return triton.compile(source, target=target, options={"num_warps": kernels.NUM_WARPS})


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_for_nvidia(arch, dtype, tmp_path):
    kernel = compiled(GPUTarget("cuda", arch, 32), dtype)
    (tmp_path / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run(
        [cuobjdump, "--dump-resource-usage", tmp_path / "kernel.cubin"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    assert found["LOCAL"] == found["STACK"] == 0
    assert found["REG"] <= 64  # so that a multiprocessor holds 4 programs of 8 warps
    assert kernel.metadata.shared <= 1024
    assert re.search(r"ld\.global(\.\w+)*\.v4", kernel.asm["ptx"])


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_for_amd(dtype):
    kernel = compiled(GPUTarget("hip", "gfx942", 64), dtype)
    spilled = re.findall(r"\.[sv]gpr_spill_count:\s+(\d+)", kernel.asm["amdgcn"])
    assert {int(number) for number in spilled} == {0}
