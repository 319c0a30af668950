"""What a rule is given reaches its command: read off the rules' text, without Snakemake.

A parameter that its command leaves out changes nothing and yet triggers the rule again, so nothing else would tell.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

RULES = Path(__file__).resolve().parents[2] / "pipeline" / "rules"
# Parameters that are there to run a rule again when they change, and are no words of its command.
TRIGGERS = {"target", "definition", "definitions", "prompt_digest", "prompt_digests", "last_failure"}
Rule = dict[str, str]  # its sections: input, params, shell and so on


def read_rules() -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    for path in sorted(RULES.glob("*.smk")):
        for block in re.split(r"^(?=\w)", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            if found := re.match(r"(?:rule|checkpoint) (\w+):", block):
                sections = re.split(r"^    (\w+):(?=\s)", block, flags=re.MULTILINE)[1:]
                rules[found[1]] = dict(zip(sections[::2], sections[1::2], strict=True))
    return rules


def names_in(section: str) -> list[str]:
    return re.findall(r"^        (\w+)=", section, flags=re.MULTILINE)


ALL = read_rules()
WITH_PARAMS = {name: rule for name, rule in ALL.items() if "params" in rule and "shell" in rule}


def test_the_rules_are_found() -> None:
    assert {"generate", "pairs", "collect", "image_train"} <= WITH_PARAMS.keys()
    assert {"model", "options", "work"} <= set(names_in(ALL["generate"]["params"]))
    assert [name for name, rule in ALL.items() if "evaluated" in names_in(rule.get("input", ""))]


@pytest.mark.parametrize("name", ["prepare", "training_prompts"])
def test_what_reads_documents_runs_again_when_their_reader_changes(name: str) -> None:
    """The task YAMLs name it, which no import tells."""
    assert '"pipeline.tasks.reading"' in ALL[name]["input"]


@pytest.mark.parametrize("name", WITH_PARAMS)
def test_every_parameter_is_a_word_of_the_command(name: str) -> None:
    used = set(re.findall(r"\{params\.(\w+)", ALL[name]["shell"]))
    given = set(names_in(ALL[name]["params"]))
    assert used <= given
    assert given - used <= TRIGGERS


@pytest.mark.parametrize("name", [name for name, rule in ALL.items() if "evaluated" in names_in(rule.get("input", ""))])
def test_what_is_evaluated_is_told_to_the_command_that_must_leave_it_out(name: str) -> None:
    assert "--evaluated {input.evaluated:q}" in ALL[name]["shell"]
