import gzip
from pathlib import Path

import pytest

from experiments import program

HLO = """
HloModule step

%fused (p: bf16[4,8]) -> bf16[4,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %twice = bf16[4,8]{1,0} add(%p, %p)
}

%body (carry: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %carry = (s32[], bf16[4,8]{1,0}) parameter(0)
  %place = s32[] get-tuple-element(%carry), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%carry), index=1
  %fusion.1 = bf16[4,8]{1,0} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="stage_1/a"}
  ROOT %out = (s32[], bf16[4,8]{1,0}) tuple(%place, %fusion.1)
}

%no (p.1: f32[2]) -> f32[2] {
  ROOT %p.1 = f32[2]{0} parameter(0)
}

%yes (p.2: f32[2]) -> f32[2] {
  %p.2 = f32[2]{0} parameter(0)
  ROOT %fusion.2 = f32[2]{0} fusion(%p.2), kind=kLoop, calls=%fused, metadata={op_name="agc"}
}

ENTRY %main (x.1: bf16[4,8], w: f32[2], flag: pred[]) -> f32[2] {
  %x.1 = bf16[4,8]{1,0} parameter(0)
  %w = f32[2]{0} parameter(1)
  %flag = pred[] parameter(2)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[4,8]{1,0}) tuple(%zero, %x.1)
  %loop = (s32[], bf16[4,8]{1,0}) while(%start), condition=%no, body=%body, backend_config=TRIPS
  %sum = f32[2]{0} all-reduce(%w), replica_groups={{0,1}}, to_apply=%no
  %conv = (bf16[4,8]{1,0}, u8[16]{0}) custom-call(%x.1), custom_call_target="__cudnn$conv"
  ROOT %chosen = f32[2]{0} conditional(%flag, %sum, %sum), branch_computations={%no, %yes}
}
""".replace("TRIPS", '{"known_trip_count":{"n":"5"}}')


def test_counts_what_runs() -> None:
    """Numbers by hand: a bf16[4,8] has 64 bytes, an f32[2] 8."""
    assert program.count_kernels(HLO) == [
        program.Kernel("fusion", "network", 128, runs=5),
        program.Kernel("collective", "parameters", 16, runs=1),
        program.Kernel("convolution", "parameters", 144, runs=1),
        program.Kernel("fusion", "parameters", 16, runs=1),
    ]
    numbers, moved = program.fusions(program.count_kernels(HLO))
    assert numbers == {"network": 1, "parameters": 1}
    assert moved == {"network": 128, "parameters": 16}
    assert program.collective_bytes(program.count_kernels(HLO)) == 8
    assert program.moved_bytes(program.count_kernels(HLO)) == 5 * 128 + 16 + 144 + 16


def test_counts_the_program_that_a_gpu_ran(shared: Path) -> None:
    """The figures are those of the profile of F0's step on an H200."""
    file = shared / "accelerators" / "measured" / "f0_step_h200_hlo.txt.gz"
    numbers, moved = program.fusions(
        program.count_kernels(gzip.decompress(file.read_bytes()).decode())
    )
    assert numbers["network"] == 281
    assert abs(numbers["parameters"] - 2030) <= 1
    assert moved["network"] / 1e9 == pytest.approx(43.6, abs=0.05)
    assert moved["parameters"] / 1e9 == pytest.approx(8.8, abs=0.05)


@pytest.mark.parametrize(
    ("scope", "part"),
    [
        ("pmap(update)/augmentation/while", "images"),
        ("nfnet/stem/conv", "network"),
        ("a", "parameters"),
    ],
)
def test_a_kernel_is_of_the_part_that_its_scope_names(scope: str, part: str) -> None:
    assert program.count_kernels(HLO.replace("stage_1/a", scope))[0].part == part
