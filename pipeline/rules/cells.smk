rule generate:
    """Run one method on one task: a timed cell. It takes all cores, so nothing else runs beside it.

    Snakemake removes the outputs of a job that it runs again, also of one that was finished when the run was killed but
    not yet noted as such. So the work is done in a folder that holds no outputs: the journal that lets a killed cell go
    on at its prompt is there, and a cell that is already whole is only linked again (copied, where the file system has no
    links). A method that needs trained parts gets them as well: --part draft=results/parts/smollm2-135m/default/draft

    python -m pipeline.generate --model-dir results/models/smollm2-135m --dtype bfloat16 --method prompt_lookup --options '{}'
        --task humaneval --requests results/requests/laptop/smollm2-135m/humaneval.jsonl --seed 0 --sampling '{"temperature": 0.0}'
        --repeats 1 --warmup-prompts 1 --device auto --num-threads 0
        --output results/cells/laptop/smollm2-135m/bfloat16/humaneval/prompt_lookup/0
    """
    input:
        requests=f"results/requests/{PROFILE}/{{model}}/{{task}}.jsonl",
        model="results/models/{model}/source.json",
        parts=part_records,
        sources=method_sources,
    output:
        records=f"{CELL}/records.jsonl",
        cell=f"{CELL}/cell.json",
    params:
        target=lambda wildcards: METHODS[wildcards.method].definition,
        model=subpath(input.model, parent=True),
        options=lambda wildcards: json.dumps(methods_of(wildcards.model)[wildcards.method], sort_keys=True),
        sampling=json.dumps(SETTINGS.sampling.model_dump()),
        parts=part_flags,
        repeats=SETTINGS.repeats,
        warmup_prompts=SETTINGS.warmup_prompts,
        device=SETTINGS.device,
        layout=layout_flags,
        num_threads=SETTINGS.num_threads,
        work=lambda wildcards, output: f"{Path(output.cell).parent}/run",
    threads: workflow.cores
    priority: 1  # before scoring, which takes a core each: scores that wait for the last cell run beside each other
    resources:
        timed=1,
    log:
        f"results/logs/generate/{PROFILE}/{{model}}/{{dtype}}/{{task}}/{{method}}/{{seed}}.log",
    message:
        "Timing {wildcards.method} on {wildcards.task} ({wildcards.model}, {wildcards.dtype}, seed {wildcards.seed})"
    shell:
        "python -m pipeline.generate --model-dir {params.model:q} --dtype {wildcards.dtype:q}"
        " --method {wildcards.method:q} --options {params.options:q} --task {wildcards.task:q}"
        " --requests {input.requests:q} --seed {wildcards.seed} --sampling {params.sampling:q}"
        " --repeats {params.repeats} --warmup-prompts {params.warmup_prompts} --device {params.device:q}"
        " {params.layout:q} --num-threads {params.num_threads} {params.parts:q} --output {params.work:q} 2> >(tee {log:q} >&2)"
        "; ln -f {params.work:q}/records.jsonl {output.records:q} 2> /dev/null"
        " || cp {params.work:q}/records.jsonl {output.records:q}"
        "; ln -f {params.work:q}/cell.json {output.cell:q} 2> /dev/null || cp {params.work:q}/cell.json {output.cell:q}"


rule score:
    """Score the texts of one cell. No model is loaded, and a changed metric costs no generation.

    By now the end of the cell is noted, so its second name goes: --forcerun generate then times it anew.

    python -m pipeline.score --task humaneval --data results/tasks/humaneval
        --cell results/cells/laptop/smollm2-135m/bfloat16/humaneval/prompt_lookup/0 --allow-code-execution
    """
    input:
        records=f"{CELL}/records.jsonl",
        cell=f"{CELL}/cell.json",
        data="results/tasks/{task}/data.jsonl",
        sources=score_sources,
    output:
        score=f"{CELL}/score.json",
        samples=f"{CELL}/samples.jsonl",
    params:
        data=subpath(input.data, parent=True),
        cell=subpath(input.cell, parent=True),
        flags=score_flags,
        definition=lambda wildcards: TASKS[wildcards.task].stratum,
    log:
        f"results/logs/score/{PROFILE}/{{model}}/{{dtype}}/{{task}}/{{method}}/{{seed}}.log",
    message:
        "Scoring {wildcards.method} on {wildcards.task} ({wildcards.model}, {wildcards.dtype}, seed {wildcards.seed})"
    shell:
        "python -m pipeline.score --task {wildcards.task:q} --data {params.data:q} --cell {params.cell:q} {params.flags}"
        " 2> >(tee {log:q} >&2); rm -f {params.cell:q}/run/cell.json {params.cell:q}/run/records.jsonl"


rule list_cells:
    """Write down which cells the configuration asks for, a folder a line: a grid of papers is too long for a command."""
    output:
        f"results/cells/{PROFILE}.txt",
    params:
        cells=cells(CELL),
    log:
        f"results/logs/list_cells/{PROFILE}.log",
    message:
        "Listing the cells of {PROFILE}"
    run:
        Path(output[0]).write_text("".join(f"{cell}\n" for cell in params.cells), encoding="utf-8")
