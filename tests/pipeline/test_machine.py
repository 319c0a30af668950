"""What a row calls the machine that it was measured on."""

from __future__ import annotations

import pytest

from pipeline import machine


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"avx2", "avx512f", "avx512_bf16", "amx_bf16"}, "AMD EPYC, AMX"),
        ({"avx2", "avx512f", "avx512_bf16"}, "AMD EPYC, AVX512-BF16"),
        ({"avx2", "avx512f"}, "AMD EPYC, AVX-512"),
        ({"avx2"}, "AMD EPYC, AVX2"),
        (set(), "AMD EPYC"),
    ],
)
def test_processors_of_one_name_are_told_apart_by_what_they_can(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], name: str
) -> None:
    monkeypatch.setattr(machine, "_cpu", lambda: ("AMD EPYC", flags))
    assert machine.processor_name() == name


def test_no_more_cores_are_used_than_snakemake_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sets OMP_NUM_THREADS to a rule's threads, which --cores bounds."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)))
    for given, cores in (("2", 2), ("64", 64), ("128", 64), ("0", 1), ("", 64), ("4,2", 64)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert machine.available_cores() == cores
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert machine.available_cores() == 64
