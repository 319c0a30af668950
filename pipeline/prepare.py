"""Rule: turn a task's documents into requests for one model: prompt ids, stop strings, length limit.

Prompts come from lm-eval's Task API and are tokenised exactly as its ``hf`` model would, so that our numbers can be
compared with everybody's. Only the model's tokenizer and configuration are read, never its weights. By hand::

    python -m pipeline.prepare --task docstrings --data results/tasks/docstrings --model results/models/smollm2-135m \
        --num-prompts 10 --max-new-tokens 64 --chat-template \
        --output results/requests/laptop/smollm2-135m/docstrings.jsonl
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.arguments import positive
from pipeline.errors import UserError, command, made_by, tell
from pipeline.files import atomic_write
from pipeline.tasks.loading import load_task
from pipeline.tasks.source import to_jsonl

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# What lm-eval seeds its choice of few-shot examples with, where a task leaves that to chance.
FEWSHOT_SEED = 1234


def load_tokenizer(model_dir: Path) -> tuple[PreTrainedTokenizerBase, PretrainedConfig]:
    """Return the tokenizer and the configuration of a model folder.

    Raises:
        UserError: the folder or one of the two is missing or damaged.
    """
    if not model_dir.is_dir():
        raise UserError(f"{model_dir}: no such model folder; {made_by(model_dir)}")
    check_source(model_dir)
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # OSError, ValueError, KeyError, or the tokenizer library's bare Exception
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{model_dir}: cannot load the tokenizer or the configuration: {reason}") from error
    return tokenizer, config


def check_source(folder: Path) -> None:
    """Raise the ``UserError`` for which ``pipeline.fetch`` or ``pipeline.dataset`` could not fill a folder, if any."""
    try:
        source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return  # a folder that was made by hand
    except ValueError as error:
        raise UserError(f"{folder / 'source.json'} is damaged: {error}") from None
    if "error" in source:
        raise UserError(source["error"])


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Tokenise as lm-eval's ``HFLM.tok_batch_encode`` does: no second BOS where the prompt brings its own."""
    from lm_eval.models.utils import has_bos_prefix

    bos: str | None = tokenizer.bos_token
    special = {"add_special_tokens": False} if has_bos_prefix(prompt, bos) else {}
    return list(tokenizer(prompt, **special)["input_ids"])


def _render_chat(
    tokenizer: PreTrainedTokenizerBase, history: list[dict[str, str]], add_generation_prompt: bool = True
) -> str:
    """Render as lm-eval's ``HFLM.apply_chat_template`` does, a template that refuses the system role included."""
    from jinja2.exceptions import TemplateError

    def render(messages: list[dict[str, str]]) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    try:
        return render(history)
    except TemplateError:
        return render([message for message in history if message["role"] != "system"])


def _build_prompts(
    task: ConfigurableTask, tokenizer: PreTrainedTokenizerBase, num_prompts: int, chat_template: bool
) -> None:
    """Let lm-eval build the first ``num_prompts`` prompts, as its evaluator does; they are then ``task.instances``."""
    task.set_fewshot_seed(FEWSHOT_SEED)
    task.build_all_requests(
        limit=num_prompts,
        apply_chat_template=chat_template,
        fewshot_as_multiturn=chat_template,
        chat_template=functools.partial(_render_chat, tokenizer) if chat_template else None,
    )


def build_requests(
    task: ConfigurableTask,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    num_prompts: int,
    max_new_tokens: int,
    chat_template: bool,
    model: str,
) -> list[dict[str, Any]]:
    """Return the requests for the first ``num_prompts`` documents of ``task``.

    Returns:
        One dict a prompt, with ``prompt_ids`` (ints); ``until`` has the end-of-sequence text too, as in lm-eval.

    Raises:
        UserError: fewer documents than prompts asked for, no chat template or one that fails, or a prompt that does
            not fit into the context.
    """
    from jinja2.exceptions import TemplateError
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, resolve_max_length

    if chat_template and not tokenizer.chat_template:
        raise UserError(f"chat_template: true, but the tokenizer of model {model!r} has no chat template; use false")
    task_name = task.task_name
    if num_prompts > (num_documents := len(task.eval_docs)):
        raise UserError(f"num_prompts: {num_prompts}, but task {task_name!r} has only {num_documents} documents")
    try:
        _build_prompts(task, tokenizer, num_prompts, chat_template)
    except TemplateError as error:
        raise UserError(f"chat_template: true, but the chat template of model {model!r} fails: {error}") from error
    eos = None if tokenizer.eos_token_id is None else str(tokenizer.decode(tokenizer.eos_token_id))
    context = resolve_max_length(config, tokenizer)
    requests: list[dict[str, Any]] = []
    for prompt_id, instance in enumerate(task.instances):
        prompt, generation_kwargs = instance.args
        prompt_ids = encode(tokenizer, prompt)
        if (length := len(prompt_ids)) + max_new_tokens > context:
            told = f"prompt {prompt_id} of task {task_name!r} has {length} tokens"
            limit = f"with max_new_tokens: {max_new_tokens}"
            raise UserError(f"{told}; {limit} that is more than the {context} that model {model!r} can read")
        request = {"prompt_id": prompt_id, "doc_id": instance.doc_id, "prompt": prompt, "prompt_ids": prompt_ids}
        until = handle_stop_sequences(normalize_gen_kwargs(generation_kwargs).get("until"), eos=eos)
        requests.append({**request, "until": until, "max_new_tokens": max_new_tokens})
    return requests


@command
def main() -> None:
    """Write the requests file, whole or not at all."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.prepare", description="Write a task's requests.")
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with data.jsonl")
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--num-prompts", type=positive, required=True)
    parser.add_argument("--max-new-tokens", type=positive, required=True)
    parser.add_argument("--chat-template", action="store_true")
    parser.add_argument(
        "--errors-as-rows",
        action="store_true",
        help='where there are no requests to write, write one line {"error": ...} for the cells to tell as a row',
    )
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()

    try:
        tokenizer, config = load_tokenizer(arguments.model)
        check_source(arguments.data)
        requests = build_requests(
            load_task(arguments.task, arguments.data / "data.jsonl", arguments.max_new_tokens),
            tokenizer,
            config,
            num_prompts=arguments.num_prompts,
            max_new_tokens=arguments.max_new_tokens,
            chat_template=arguments.chat_template,
            model=arguments.model.name,
        )
    except UserError as error:
        if not arguments.errors_as_rows:
            raise
        tell(error)
        requests = [{"error": str(error)}]
    atomic_write(arguments.output, to_jsonl(requests))


if __name__ == "__main__":
    main()
