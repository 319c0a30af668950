"""The tasks: a YAML of lm-evaluation-harness for each, and a module of the same name for its documents.

The YAML gives prompt, few-shot examples, stop strings, filters and metrics; the module says where the documents come
from. ``python -m pipeline.dataset`` writes them to ``data.jsonl``, which the YAML reads, for us and for plain lm-eval::

    python -m lm_eval --model hf --model_args pretrained=results/models/smollm2-135m --include_path pipeline/tasks \
        --tasks docstrings --apply_chat_template --metadata '{"data_file": "results/tasks/docstrings/data.jsonl"}'
"""
