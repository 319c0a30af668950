"""What a row calls the machine that it was measured on."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pipeline import machine
from pipeline.config import load

REFERENCES = sorted((Path(__file__).resolve().parents[2] / "results/reference").glob("*.csv"))
TASK = {"num_prompts": 2, "max_new_tokens": 8, "chat_template": False}
# What the references were timed on: the processor's name, and its instruction sets.
ZEN_3, ZEN_4 = ("AMD EPYC", {"avx2"}), ("AMD EPYC", {"avx2", "avx512f", "avx512_bf16"})
CASCADE_LAKE = ("Intel(R) Xeon(R) Processor @ 2.50GHz", {"avx2", "avx512f", "avx512_vnni"})
TIMED_ON = {
    "lossless": ZEN_4,
    "lossless_bfloat16": ZEN_4,
    "lossless_bfloat16_cascade_lake": CASCADE_LAKE,
    "lossless_int8": ZEN_4,
    "multi30k": ZEN_3,
    "multi30k_cascade_lake": CASCADE_LAKE,
    "laptop": ZEN_4,
    "laptop_avx2": ZEN_3,
    "laptop_bfloat16": ZEN_4,
    "smoke": CASCADE_LAKE,
    "image": CASCADE_LAKE,
}
CARDS = {"gpu": "NVIDIA H200"}


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


@pytest.mark.parametrize(
    ("device", "cards", "flags", "dtype"),
    [
        ("cpu", ["Some GPU"], {"avx2", "avx512f"}, "float32"),
        ("cpu", [], {"avx2", "avx512f", "avx512_bf16"}, "bfloat16"),
        ("cpu", [], {"asimd", "bf16"}, "bfloat16"),
        ("auto", [], {"avx2"}, "float32"),
        ("auto", ["Some GPU"], {"avx2"}, "bfloat16"),
        ("cuda", [], {"avx2"}, "bfloat16"),
    ],
)
def test_the_fast_dtype_is_bfloat16_where_there_is_arithmetic_in_it(
    monkeypatch: pytest.MonkeyPatch, device: str, cards: list[str], flags: set[str], dtype: str
) -> None:
    monkeypatch.setattr(machine, "_cpu", lambda: ("AMD EPYC", flags))
    monkeypatch.setattr(machine, "_lines", lambda *arguments: cards)
    assert machine.fast_dtype(device) == dtype


def test_auto_is_the_dtype_that_the_machine_is_fast_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def dtypes(*given: str) -> list[str]:
        model = {"hub": "org/name", "dtypes": list(given)}
        settings = {
            "profile": "p",
            "models": {"m": model},
            "methods": {"autoregressive": {}},
            "tasks": {"humaneval": TASK},
        }
        return load(settings).models["m"].dtypes

    monkeypatch.setattr("pipeline.config.fast_dtype", {"auto": "float32"}.__getitem__)  # of the configuration's device
    assert dtypes("auto") == ["float32"]
    assert dtypes("int8", "auto") == ["int8", "float32"]
    assert dtypes("auto", "float32") == ["float32"], "once, whichever it stands for"
    assert dtypes("bfloat16") == ["bfloat16"]


def test_a_twin_is_in_the_dtype_that_its_machine_is_fast_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the model beside it: the default profile's are."""
    for dtype in ("float32", "bfloat16"):
        monkeypatch.setattr("pipeline.config.fast_dtype", lambda device, dtype=dtype: dtype)
        settings = load("config/laptop.yaml")
        assert settings.twins["verbalized-2m"].dtypes == settings.models["smollm2-135m"].dtypes == [dtype]


def test_no_more_cores_are_used_than_snakemake_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sets OMP_NUM_THREADS to a rule's threads, which --cores bounds."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)))
    for given, cores in (("2", 2), ("64", 64), ("128", 64), ("0", 1), ("", 64), ("4,2", 64)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert machine.available_cores() == cores
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert machine.available_cores() == 64


def test_the_last_of_a_processors_caches_is_taken(tmp_path: Path) -> None:
    assert machine.processor_cache_bytes(tmp_path) is None
    for index, (level, size) in enumerate([("1", "32K"), ("1", "32K"), ("3", "32768K"), ("2", "1M")]):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")
    assert machine.processor_cache_bytes(tmp_path) == 32 * 2**20
    (tmp_path / "index2" / "size").write_text("much\n")
    assert machine.processor_cache_bytes(tmp_path) is None


@pytest.mark.parametrize(
    "reference", [path for path in REFERENCES if path.stem not in CARDS], ids=lambda path: path.stem
)
def test_a_reference_calls_its_machine_what_a_run_there_would(monkeypatch: pytest.MonkeyPatch, reference: Path) -> None:
    """Else the gate takes the references' own machine for another, and holds no counter and no text exactly."""
    monkeypatch.setattr(machine, "_cpu", lambda: TIMED_ON[reference.stem])
    with reference.open(encoding="utf-8", newline="") as file:
        assert {row["hardware"] for row in csv.DictReader(file)} == {machine.processor_name()}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_s_reference_is_called_by_the_card(name: str) -> None:
    (reference,) = (path for path in REFERENCES if path.stem == name)
    with reference.open(encoding="utf-8", newline="") as file:
        assert {(row["device"], row["hardware"]) for row in csv.DictReader(file)} == {("cuda", CARDS[name])}


def test_there_are_references() -> None:
    assert len(REFERENCES) == 12
