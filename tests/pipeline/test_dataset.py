"""Documents: every source gives what it should and names itself; a bad one is told in a line and nothing is written."""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from pipeline import dataset
from pipeline.errors import UserError
from pipeline.registry import TASKS
from pipeline.tasks import docstrings, verbalized

EMBEDDED = [name for name, task in TASKS.items() if "embedded" in task.origins]
GSM = {"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["dataset", *map(str, arguments)])
    dataset.main()


def read(folder: Path) -> tuple[dict, list[dict]]:
    lines = (folder / "data.jsonl").read_text(encoding="utf-8").split("\n")
    return json.loads((folder / "source.json").read_text()), [json.loads(line) for line in lines if line]


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def multi30k(folder: Path, english: bytes, german: bytes) -> Path:
    folder.mkdir()
    (folder / "test_2016_flickr.en.gz").write_bytes(gzip.compress(english))
    (folder / "test_2016_flickr.de.gz").write_bytes(gzip.compress(german))
    return folder


@pytest.mark.parametrize("task", EMBEDDED)
def test_embedded_documents_are_the_same_every_time_and_name_their_source(task, tmp_path, monkeypatch):
    run(monkeypatch, "--task", task, "--output", tmp_path)
    about, documents = read(tmp_path)
    assert about["task"] == task
    assert about["num_docs"] == len(documents) >= 100
    assert len({json.dumps(document) for document in documents}) == len(documents)
    assert about["sha256"] == hashlib.sha256((tmp_path / "data.jsonl").read_bytes()).hexdigest()
    assert about["source"].startswith(("package:", "python "))
    assert about["revision"]
    assert list(dataset.source_of(task).embedded.documents()) == documents


def test_a_jsonl_is_read_and_its_hash_is_the_revision(tmp_path, monkeypatch):
    # U+2028 ends a line for str.splitlines, but not in JSONL.
    path = jsonl(tmp_path / "test.jsonl", {**GSM, "more": 1})
    path.write_text(path.read_text() + '\n{"question": "a\u2028b", "answer": "#### 1"}\n', encoding="utf-8")
    run(monkeypatch, "--task", "gsm8k", "--path", path, "--output", tmp_path / "out")
    about, documents = read(tmp_path / "out")
    assert documents == [GSM, {"question": "a\u2028b", "answer": "#### 1"}]
    assert about["source"] == f"path:{path}"
    assert about["revision"] == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("cnn_dailymail", {"article": "Long.", "highlights": "Short."}),
        ("wmt14", {"source": "Ja.", "target": "Yes."}),
    ],
)
def test_spec_bench_rows_of_the_task_are_taken(task, expected, tmp_path):
    rows = [
        {"category": "qa", "turns": ["Who?"]},
        {"category": "summarization", "turns": ["Summarize: Long."], "reference": ["Short."]},
        {"category": "translation", "turns": ["Translate German to English: Ja."], "reference": ["Yes."]},
    ]
    assert dataset.from_path(task, jsonl(tmp_path / "question.jsonl", *rows))[0] == [expected]


def test_multi30k_pairs_lines(tmp_path):
    folder = multi30k(tmp_path / "m", b"A dog.\nTwo cats.\n", "Ein Hund.\nZwei Kätzchen.\n".encode())
    documents, source, _ = dataset.from_path("multi30k", folder)
    assert documents[1] == {"source": "Two cats.", "target": "Zwei Kätzchen."}
    assert source == f"path:{folder}"


def test_a_hub_is_read_at_the_commit_that_its_branch_names(monkeypatch):
    import datasets
    import huggingface_hub

    asked = {}

    def load(name, config, **options):
        asked.update(options, name=name, config=config)
        return [{"translation": {"de": "Ja.", "en": "Yes."}}]

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha="c0ffee"))
    monkeypatch.setattr(datasets, "load_dataset", load)
    found = dataset.from_hub("wmt14", "wmt/wmt14", "main")
    assert found == ([{"source": "Ja.", "target": "Yes."}], "hub:wmt/wmt14", "c0ffee")
    assert asked == {"name": "wmt/wmt14", "config": "de-en", "split": "test", "revision": "c0ffee"}


def test_offline_is_told_in_one_line(tmp_path):
    command = [sys.executable, "-m", "pipeline.dataset", "--task=gsm8k", "--hub=openai/gsm8k", f"--output={tmp_path}"]
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot read hub 'openai/gsm8k', revision main: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


BAD_FILES = {
    "not JSON": (b'{"question": "a", "answer": "b"}\n{"question"\n', "line 2: not JSON"),
    "not an object": (b"[1, 2]\n", "line 1: expected a JSON object, got list"),
    "misspelt key": (
        b'{"qestion": "a", "answer": "b"}\n',
        "line 1: key 'question' is missing; did you mean 'qestion'?",
    ),
    "not text": (b'{"question": "a", "answer": 4}\n', "line 1: key 'answer' is int, expected text"),
    "empty row": (b"{}\n", "line 1: key 'question' is missing; the row is empty"),
    "half a character": (
        json.dumps(GSM).encode() + b'\n{"question": "\\ud83d?", "answer": "b"}\n',
        "line 2: '\\ud83d' is half a character",
    ),
    "not UTF-8": (b'{"question": "\xff"}\n', "not UTF-8 (byte 14 is 0xff)"),
    "empty": (b"\n", "has no documents"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_told_and_what_was_there_stays(kind, tmp_path, monkeypatch, capsys):
    content, message = BAD_FILES[kind]
    path, output = tmp_path / "bad.jsonl", tmp_path / "out"
    path.write_bytes(content)
    run(monkeypatch, "--task", "gsm8k", "--path", jsonl(tmp_path / "good.jsonl", GSM), "--output", output)
    before = read(output)
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, "--task", "gsm8k", "--path", path, "--output", output)
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert message in error
    assert str(path) in error
    assert error.count("\n") == 1
    assert read(output) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "docstring"], "unknown task 'docstring'; did you mean 'docstrings'?"),
        (["--task", "gsm8k"], "task 'gsm8k' has no embedded documents: give it a path: or a hub:"),
        (["--task", "gsm8k", "--path", "/no/such.jsonl"], "/no/such.jsonl: no such file"),
        (["--task", "gsm8k", "--revision", "main"], "revision: 'main' is of no use without hub:"),
        (["--task", "docstrings", "--hub", "a/b"], "task 'docstrings' is in no hub"),
    ],
)
def test_a_bad_request_is_told(arguments, message, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *arguments, "--output", tmp_path / "out")
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_where_a_file_is_wanted_is_told_with_the_files_in_it(tmp_path):
    with pytest.raises(UserError, match=r"a folder, expected a file; it holds no \*\.jsonl$"):
        dataset.from_path("gsm8k", tmp_path)
    for name in ("train.jsonl", "test.jsonl", "readme.md"):
        jsonl(tmp_path / name, GSM)
    with pytest.raises(UserError, match=r"expected a file; did you mean one of test\.jsonl, train\.jsonl\?$"):
        dataset.from_path("gsm8k", tmp_path)


def test_documents_that_cannot_be_had_become_a_reason(tmp_path, monkeypatch, capsys):
    run(monkeypatch, "--task", "gsm8k", "--path", jsonl(tmp_path / "good.jsonl", GSM), "--output", tmp_path / "out")
    run(monkeypatch, "--task", "gsm8k", "--path", "/no/such.jsonl", "--output", tmp_path / "out", "--errors-as-rows")
    reason = "/no/such.jsonl: no such file or folder"
    assert read(tmp_path / "out") == ({"task": "gsm8k", "error": reason}, [])
    assert capsys.readouterr().err == f"error: {reason}\n"


def test_bad_multi30k_folders_are_told(tmp_path):
    with pytest.raises(UserError, match=r"2 lines, .* has 1"):
        dataset.from_path("multi30k", multi30k(tmp_path / "uneven", b"a\nb\n", b"a\n"))
    with pytest.raises(UserError, match="not UTF-8"):
        dataset.from_path("multi30k", multi30k(tmp_path / "latin", b"a\n", "ä\n".encode("latin-1")))
    broken = multi30k(tmp_path / "broken", b"a\n", b"a\n")
    (broken / "test_2016_flickr.de.gz").write_bytes(gzip.compress(b"a\n")[:-9])
    with pytest.raises(UserError, match="not a whole gzip file"):
        dataset.from_path("multi30k", broken)
    (broken / "test_2016_flickr.en.gz").unlink()
    with pytest.raises(UserError, match=r"test_2016_flickr\.en\.gz: no such file"):
        dataset.from_path("multi30k", broken)


def test_cut_off_between_the_two_files_leaves_no_data_file(tmp_path, monkeypatch):
    dataset.write("gsm8k", [GSM], "path:a", "1", tmp_path)
    write = dataset.atomic_write

    def cut_off(path, text):
        if path.name == "data.jsonl":
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(dataset, "atomic_write", cut_off)
    with pytest.raises(KeyboardInterrupt):
        dataset.write("gsm8k", [GSM, GSM], "path:b", "2", tmp_path)
    assert not (tmp_path / "data.jsonl").exists()


@pytest.mark.parametrize("task", TASKS)
def test_the_registry_offers_the_sources_that_the_module_has(task):
    source = dataset.source_of(task)
    has = {"embedded": source.embedded, "path": source.from_path, "hub": source.hub}
    assert set(TASKS[task].origins) == {origin for origin, value in has.items() if value}


def test_verbalized_splits_are_disjoint_whatever_the_seed():
    splits = {
        split: {pair["source"] for seed in (1, 2) for pair in verbalized.documents(split, 500, seed)}
        for split in ("train", "validation", "test")
    }
    assert not splits["train"] & splits["test"]
    assert not splits["train"] & splits["validation"]
    assert not splits["validation"] & splits["test"]
    assert verbalized.documents("train", 500, 1) != verbalized.documents("train", 500, 2)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        verbalized.documents("dev", 1, 1)


def test_verbalized_examples_in_the_prompt_are_training_pairs():
    text = Path(TASKS["verbalized"].yaml).read_text(encoding="utf-8").replace("!function", "")
    for example in yaml.safe_load(text)["fewshot_config"]["samples"]:
        assert verbalized.split_of(example["source"]) == "train"


def test_verbalized_says_german_as_it_is_said():
    said = {pair["source"]: pair["target"] for pair in verbalized.documents("train", 3000, 7)}
    assert said["twenty-one"] == "einundzwanzig"
    for english, german in said.items():
        if "euros" in english:
            assert english.count(" and ") >= 1
            assert " Euro und " in german
            assert german.endswith(" Cent")


def test_a_docstring_is_cut_out_of_its_function():
    source = (
        "class A:\n"
        "    def f(self, x):\n"
        '        """Return twice x, whatever x may be.\n\n        More.\n        """\n'
        "        # doubled\n"
        "        return 2 * x" + " + 0" * 30 + "\n"
        "    def g(self):\n"
        '        """Only a docstring, nothing else in here."""\n'
    )
    f, g = ast.parse(source).body[0].body
    document = docstrings.document_of(f, source.split("\n"), "m")
    assert document["summary"] == "Return twice x, whatever x may be."
    assert document["body"] == "def f(self, x):\n    # doubled\n    return 2 * x" + " + 0" * 30
    assert document["name"] == "m.f"
    assert docstrings.document_of(g, source.split("\n"), "m") is None


def test_every_body_is_a_function_and_form_feeds_end_no_line(tmp_path):
    body = "        return 2 * x" + " + 0" * 30 + "\n"
    text = f'class A:\n    def f(self, x):\n        """Return twice x, whatever x may be."""\n{body}'
    broken = text.replace("return 2", 'y = """\nat the margin\n"""\n        return 2')
    (tmp_path / "a.py").write_text(broken + "\f\n" + text.replace("def f", "def g"))
    (document,) = docstrings._functions(tmp_path / "a.py")
    assert document["name"] == "a.g"
    assert document["body"] == textwrap.dedent(f"    def g(self, x):\n{body}").rstrip()
    for document in docstrings.documents():
        assert isinstance(ast.parse(document["body"]).body[0], ast.FunctionDef)
