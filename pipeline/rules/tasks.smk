rule dataset:
    """Write the documents of a task, and where they come from.

    python -m pipeline.dataset --task humaneval --output results/tasks/humaneval
    """
    input:
        local=lambda wildcards: local_path(task_settings(wildcards.task)),
        sources=dataset_sources,
    output:
        data="results/tasks/{task}/data.jsonl",
        source="results/tasks/{task}/source.json",
    params:
        origin=lambda wildcards: origin(task_settings(wildcards.task), ("path", "hub", "revision")),
        folder=subpath(output.data, parent=True),
        mark="results/failed/tasks/{task}",
        last_failure=lambda wildcards: last_failure(f"results/failed/tasks/{wildcards.task}"),
    log:
        "results/logs/dataset/{task}.log",
    message:
        "Writing the documents of {wildcards.task}"
    shell:
        "python -m pipeline.dataset --task {wildcards.task:q} {params.origin:q} --output {params.folder:q}"
        " --errors-as-rows 2> >(tee {log:q} >&2)"
        "; if grep -q '\"error\":' {output.source:q}; then"
        " mkdir -p $(dirname {params.mark:q}); touch {params.mark:q}; fi"


rule prepare:
    """Turn the first documents of a task into a model's prompts, as token ids.

    python -m pipeline.prepare --task humaneval --data results/tasks/humaneval --model results/models/smollm2-135m
        --num-prompts 6 --max-new-tokens 192 --output results/requests/laptop/smollm2-135m/humaneval.jsonl
    """
    input:
        data="results/tasks/{task}/data.jsonl",
        model="results/models/{model}/source.json",
        sources=sources_of("pipeline.prepare", "pipeline.tasks.reading"),  # which task YAMLs name
    output:
        f"results/requests/{PROFILE}/{{model}}/{{task}}.jsonl",
    params:
        data=subpath(input.data, parent=True),
        model=subpath(input.model, parent=True),
        num_prompts=lambda wildcards: task_settings(wildcards.task).num_prompts,
        max_new_tokens=lambda wildcards: task_settings(wildcards.task).max_new_tokens,
        flags=lambda wildcards: chat_flags(wildcards.task),
        prompt_digest=lambda wildcards: sources.prompt_digest(TASKS[wildcards.task].yaml),
    log:
        f"results/logs/prepare/{PROFILE}/{{model}}/{{task}}.log",
    message:
        "Preparing the prompts of {wildcards.task} for {wildcards.model}"
    shell:
        "python -m pipeline.prepare --task {wildcards.task:q} --data {params.data:q} --model {params.model:q}"
        " --num-prompts {params.num_prompts} --max-new-tokens {params.max_new_tokens} {params.flags}"
        " --errors-as-rows --output {output:q} 2> >(tee {log:q} >&2)"
