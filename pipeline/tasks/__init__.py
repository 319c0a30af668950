"""The tasks: one lm-evaluation-harness YAML each (prompt, few-shot examples, stop strings, filters, metrics), and beside it one
Python module of the same name that says where its documents come from.

``python -m pipeline.dataset`` writes a task's documents to ``data.jsonl``; the YAML reads that file, for us and for plain lm-eval::

    python -m lm_eval --model hf --model_args pretrained=results/models/smollm2-135m --include_path pipeline/tasks \
        --tasks docstrings --apply_chat_template --metadata '{"data_file": "results/tasks/docstrings/data.jsonl"}'
"""
