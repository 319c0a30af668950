rule collect:
    """Gather all cells in one table, a row each, and say what the run ran on.

    python -m pipeline.collect --cells results/cells/laptop/smollm2-135m/bfloat16/humaneval/prompt_lookup/0 --profile laptop
        --output results/benchmark.csv --provenance results/provenance.json
    """
    input:
        cells=cells(f"{CELL}/cell.json"),
        scores=cells(f"{CELL}/score.json"),
        tasks=expand("results/tasks/{task}/source.json", task=asked_tasks()),
        models=expand("results/models/{model}/source.json", model=[*SETTINGS.models, *SETTINGS.twins]),
        sources=sources_of("pipeline.collect"),
    output:
        benchmark="results/benchmark.csv",
        provenance="results/provenance.json",
    params:
        cells=lambda wildcards, input: [str(Path(cell).parent) for cell in input.cells],
        tasks=lambda wildcards, input: str(Path(input.tasks[0]).parents[1]),
        models=lambda wildcards, input: str(Path(input.models[0]).parents[1]),
        profile=SETTINGS.profile,
    log:
        "results/logs/collect.log",
    message:
        "Collecting {output.benchmark}"
    shell:
        "python -m pipeline.collect --cells {params.cells:q} --profile {params.profile:q} --tasks-dir {params.tasks:q}"
        " --models-dir {params.models:q} --output {output.benchmark:q}"
        " --provenance {output.provenance:q} 2> >(tee {log:q} >&2)"


rule tables:
    """Draw the table for people.

    python -m pipeline.tables --benchmark results/benchmark.csv --provenance results/provenance.json
        --output results/tables/benchmark.md
    """
    input:
        benchmark="results/benchmark.csv",
        provenance="results/provenance.json",
        sources=sources_of("pipeline.tables"),
    output:
        "results/tables/benchmark.md",
    log:
        "results/logs/tables.log",
    message:
        "Drawing {output}"
    shell:
        "python -m pipeline.tables --benchmark {input.benchmark:q} --provenance {input.provenance:q} --output {output:q}"
        " 2> >(tee {log:q} >&2)"


rule figures:
    """Draw quality against speed.

    python -m pipeline.figures --benchmark results/benchmark.csv --output results/figures/speed_quality.png
    """
    input:
        benchmark="results/benchmark.csv",
        sources=sources_of("pipeline.figures"),
    output:
        "results/figures/speed_quality.png",
    log:
        "results/logs/figures.log",
    message:
        "Drawing {output}"
    shell:
        "python -m pipeline.figures --benchmark {input.benchmark:q} --output {output:q} 2> >(tee {log:q} >&2)"


rule curves:
    """Draw quality against forward passes and speed, for the models that generate in parallel.

    python -m pipeline.curves --benchmark results/benchmark.csv --output results/figures/passes.png
    """
    input:
        benchmark="results/benchmark.csv",
        sources=sources_of("pipeline.curves"),
    output:
        "results/figures/passes.png",
    log:
        "results/logs/curves.log",
    message:
        "Drawing {output}"
    shell:
        "python -m pipeline.curves --benchmark {input.benchmark:q} --output {output:q} 2> >(tee {log:q} >&2)"
