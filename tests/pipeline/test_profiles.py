"""What decides where the DAG runs: the profiles of Snakemake, and the configurations for GPUs, without either."""

from __future__ import annotations

import fcntl
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.cell import devices_for
from pipeline.clock import MemoryMeter
from pipeline.config import load
from pipeline.files import folder_lock
from tests.pipeline.dag import copy_project, plan

ROOT = Path(__file__).resolve().parents[2]
RULES = "\n".join(path.read_text() for path in sorted((ROOT / "pipeline" / "rules").glob("*.smk")))
TIMED = {text.split(":")[0] for text in re.split(r"^rule ", RULES, flags=re.MULTILINE)[1:] if "timed=1" in text}
CLUSTERS = ("slurm", "kubernetes")
GPU = ("gpu", "rtx4090", "a100", "paper")


def profile(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((ROOT / "profiles" / name / "profile.yaml").read_text())
    return values


def test_rules_that_are_timed_are_found() -> None:
    assert {"generate", "compare", "selfgen"} <= TIMED
    assert not {"score", "fetch", "collect", "train_twin"} & TIMED


def test_on_slurm_each_timed_job_has_a_node_to_itself_and_they_do_not_wait_for_each_other() -> None:
    slurm = profile("slurm")
    alone = {rule for rule, asked in slurm["set-resources"].items() if asked.get("slurm_extra") == "'--exclusive'"}
    assert alone == TIMED
    assert slurm["resources"]["timed"] >= slurm["jobs"]


def test_on_slurm_each_rule_asks_for_memory_that_is_passed_on() -> None:
    """The plugin leaves --mem out where mem_mb is 0, and the cluster's default, often little, then applies."""
    slurm = profile("slurm")
    assert all(asked["mem_mb"] > 0 for asked in (slurm["default-resources"], *slurm["set-resources"].values()))


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_is_as_safe_to_stop_and_start_again_as_one_machine(name: str) -> None:
    default, cluster = profile("default"), profile(name)
    own = {"cores", "resources"}
    assert {key: cluster[key] for key in default if key not in own} == {
        key: value for key, value in default.items() if key not in own
    }


@pytest.mark.parametrize("name", GPU)
def test_a_gpu_profile_has_its_dag(name: str, tmp_path: Path) -> None:
    """Of three methods: one that needs nothing, one that needs heads, one that needs a draft model."""
    settings = load(ROOT / "config" / f"{name}.yaml")
    kept = ("autoregressive", "medusa", "hf_assisted")
    others = ", ".join(f"{method}: null" for method in settings.methods if method not in kept)
    counts = plan(copy_project(tmp_path), "--config", f"profile={name}", f"methods={{{others}}}")
    assert counts["generate"] == counts["score"] == len(settings.models) * len(kept) * len(settings.tasks)
    assert counts["fetch"] == len(settings.models) + len(settings.drafts)
    assert counts["train_heads"] == len(settings.models)
    assert counts["train_draft"] == sum(model.draft is None for model in settings.models.values())


def test_a_model_is_spread_over_all_visible_cards_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert devices_for(cuda, None) == [cuda]
    assert devices_for(cuda, "auto") == [torch.device("cuda", 0), torch.device("cuda", 1)]
    with pytest.raises(ValueError, match="device_map 'auto' spreads a model over graphics cards; this one runs on cpu"):
        devices_for(cpu, "auto")


def test_memory_is_what_the_allocators_of_all_cards_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    held, forgotten = {0: 100, 1: 20}, []
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda card: held[card.index])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda card: 2 * held[card.index])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda card: forgotten.append(card.index))
    meter = MemoryMeter(torch.device("cuda", 0), torch.device("cuda", 1))
    meter.reset_peak()
    assert (meter.resident(), meter.peak(), forgotten) == (120, 240, [0, 1])
    assert MemoryMeter(torch.device("cuda", 1)).peak() == 40


def test_a_folder_is_held_by_one_and_let_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with folder_lock(tmp_path / "cell"), (tmp_path / "cell" / ".lock").open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with folder_lock(tmp_path / "cell"):
        pass
    assert capsys.readouterr().err == ""


def test_where_the_file_system_has_no_locks_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("pipeline.files.fcntl.flock", refuse)
    with folder_lock(tmp_path):
        pass
    assert "cannot be locked (No locks available)" in capsys.readouterr().err
