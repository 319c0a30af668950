COMPARED = f"results/exactness/{PROFILE}/{{model}}"


rule exactness:
    """Compare every lossless method's ids with the baseline's, in each dtype of the configuration's exactness section.

    No part of `all`: snakemake --cores all exactness. By hand:

    python -m pipeline.exactness --gather results/exactness/lossless/smollm2-135m/float32 --output results
    """
    input:
        tables=expand(f"{COMPARED}/{{dtype}}/exactness.csv", model=SETTINGS.models, dtype=SETTINGS.exactness.dtypes),
        sources=sources_of("pipeline.exactness"),
    output:
        table="results/exactness.csv",
        divergences="results/divergences.jsonl",
    params:
        folders=lambda wildcards, input: [str(Path(table).parent) for table in input.tables],
        folder=subpath(output.table, parent=True),
    log:
        "results/logs/exactness.log",
    message:
        "Putting together {output.table}"
    shell:
        "python -m pipeline.exactness --gather {params.folders:q} --output {params.folder:q} 2> >(tee {log:q} >&2)"


use rule prepare as prepare_compared with:
    output:
        f"{COMPARED}/requests/{{task}}.jsonl",
    params:
        data=subpath(input.data, parent=True),
        model=subpath(input.model, parent=True),
        num_prompts=SETTINGS.exactness.prompts_per_task,
        max_new_tokens=SETTINGS.exactness.max_new_tokens,
        flags=lambda wildcards: chat_flags(wildcards.task),
        prompt_digest=lambda wildcards: sources.prompt_digest(TASKS[wildcards.task].yaml),
    log:
        f"results/logs/exactness/{PROFILE}/{{model}}/requests/{{task}}.log",


rule compare:
    """Run the baseline and every lossless method on each prompt, untimed. It takes all cores.

    python -m pipeline.exactness --model-dir results/models/smollm2-135m --dtype float32 --methods prompt_lookup
        --requests results/exactness/lossless/smollm2-135m/requests/humaneval.jsonl
        --output results/exactness/lossless/smollm2-135m/float32
    """
    input:
        requests=expand(f"{COMPARED}/requests/{{task}}.jsonl", task=SETTINGS.tasks, allow_missing=True),
        model="results/models/{model}/source.json",
        parts=lambda wildcards: records_of(wildcards.model, compared_parts()),
        sources=sources_of("pipeline.exactness", *(m for name in compared() for m in METHODS[name].modules)),
    output:
        table=f"{COMPARED}/{{dtype}}/exactness.csv",
        divergences=f"{COMPARED}/{{dtype}}/divergences.jsonl",
    params:
        model=subpath(input.model, parent=True),
        methods=compared(),
        options=json.dumps({name: SETTINGS.methods[name] for name in compared()}, sort_keys=True),
        definitions=[METHODS[name].definition for name in compared()],
        parts=lambda wildcards, input: flags_of_parts(compared_parts(), input.parts),
        device=SETTINGS.device,
        layout=layout_flags,
        num_threads=SETTINGS.num_threads,
        folder=subpath(output.table, parent=True),
    threads: workflow.cores
    resources:
        timed=1,
    log:
        f"results/logs/exactness/{PROFILE}/{{model}}/{{dtype}}.log",
    message:
        "Comparing ids with the baseline's ({wildcards.model}, {wildcards.dtype})"
    shell:
        "python -m pipeline.exactness --model-dir {params.model:q} --dtype {wildcards.dtype:q} --device {params.device:q}"
        " --requests {input.requests:q} --methods {params.methods:q} --options {params.options:q} {params.parts:q}"
        " {params.layout:q} --num-threads {params.num_threads} --output {params.folder:q} 2> >(tee {log:q} >&2)"
