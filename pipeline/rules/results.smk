# What becomes of the cells: tables, figures, words, and the comparison with a reference.
STRATIFIED = [task for task in asked_tasks() if TASKS[task].stratum]
STRATA_TABLES = ["strata"] * bool(STRATIFIED)
# What names in the table stand for.
ASKED = sorted({*SETTINGS.methods, *(name for twin in SETTINGS.twins.values() for name in twin.methods)})
DEFINITIONS = [METHODS[name].definition for name in ASKED] + [TASKS[name].group for name in asked_tasks()]
ALL_TABLES = [*PAPER_TABLES, *STRATA_TABLES, *IMAGE_TABLES]


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
        trained=trained_records(),
        list=rules.list_cells.output,
        sources=sources_of("pipeline.collect"),
    output:
        benchmark="results/benchmark.csv",
        provenance="results/provenance.json",
    params:
        tasks=lambda wildcards, input: str(Path(input.tasks[0]).parents[1]),
        models=lambda wildcards, input: str(Path(input.models[0]).parents[1]),
        profile=SETTINGS.profile,
        definitions=DEFINITIONS,
    log:
        "results/logs/collect.log",
    message:
        "Collecting {output.benchmark}"
    shell:
        "python -m pipeline.collect --cells @{input.list:q} --profile {params.profile:q} --tasks-dir {params.tasks:q}"
        " --models-dir {params.models:q} --trained {input.trained:q} --output {output.benchmark:q}"
        " --provenance {output.provenance:q} 2> >(tee {log:q} >&2)"


rule benchmark_table:
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


rule paper_tables:
    """Draw the tables of the source systems: published figures beside ours.

    python -m pipeline.paper_tables --benchmark results/benchmark.csv --output results/tables
    """
    input:
        benchmark="results/benchmark.csv",
        sources=sources_of("pipeline.paper_tables"),
        published=here(["pipeline/published.yaml"]),
    output:
        expand("results/tables/{name}.{form}", name=PAPER_TABLES, form=["csv", "md", "tex"]),
    params:
        folder=subpath(output[0], parent=True),
    log:
        "results/logs/paper_tables.log",
    message:
        "Drawing the paper tables"
    shell:
        "python -m pipeline.paper_tables --benchmark {input.benchmark:q} --output {params.folder:q} 2> >(tee {log:q} >&2)"


rule strata:
    """Draw the table of quality by kind of document, for the tasks that tell kinds apart.

    python -m pipeline.strata --cells results/cells/laptop/verbalized-2m/float32/verbalized_plain/shufflelm/0
        --output results/tables
    """
    input:
        cells=[score for score in cells(f"{CELL}/score.json") if Path(score).parts[-4] in STRATIFIED],
        sources=sources_of("pipeline.strata"),
    output:
        multiext("results/tables/strata", ".csv", ".md"),
    params:
        cells=lambda wildcards, input: [str(Path(score).parent) for score in input.cells],
        folder=subpath(output[0], parent=True),
    log:
        "results/logs/strata.log",
    message:
        "Drawing quality by kind of document"
    shell:
        "python -m pipeline.strata --cells {params.cells:q} --output {params.folder:q} 2> >(tee {log:q} >&2)"


rule tables:
    """All tables: snakemake --cores all tables"""
    input:
        "results/tables/benchmark.md",
        rules.paper_tables.output,
        expand("results/tables/{name}.md", name=[*STRATA_TABLES, *IMAGE_TABLES]),


rule answers:
    """Say in words what the table says.

    python -m pipeline.answers --benchmark results/benchmark.csv --output results/report.md
    """
    input:
        benchmark="results/benchmark.csv",
        sources=sources_of("pipeline.answers"),
    output:
        "results/report.md",
    log:
        "results/logs/answers.log",
    message:
        "Writing {output}"
    shell:
        "python -m pipeline.answers --benchmark {input.benchmark:q} --output {output:q} 2> >(tee {log:q} >&2)"


rule figures:
    """Draw quality against speed.

    python -m pipeline.figures --benchmark results/benchmark.csv --output results/figures/speed_quality.png
    """
    input:
        benchmark="results/benchmark.csv",
        sources=sources_of("pipeline.figures"),
    output:
        figure("speed_quality"),
    log:
        "results/logs/figures.log",
    message:
        "Drawing {output}"
    shell:
        "python -m pipeline.figures --benchmark {input.benchmark:q} --output {output:q} 2> >(tee {log:q} >&2)"


rule overview:
    """Draw speed-up by task, the time of a step, the distance to the memory's limit, and memory.

    python -m pipeline.overview --benchmark results/benchmark.csv --output results/figures
    """
    input:
        benchmark="results/benchmark.csv",
        sources=sources_of("pipeline.overview"),
    output:
        figure("speedup_by_task"),
        figure("time_per_step"),
        figure("mbu"),
        figure("memory"),
    params:
        folder=subpath(output[0], parent=True),
    log:
        "results/logs/overview.log",
    message:
        "Drawing the figures of the whole table"
    shell:
        "python -m pipeline.overview --benchmark {input.benchmark:q} --output {params.folder:q} 2> >(tee {log:q} >&2)"


rule traces:
    """Draw how many tokens the steps of each method emit.

    python -m pipeline.traces --cells results/cells/laptop/smollm2-135m/bfloat16/humaneval/medusa/0
        --output results/figures/tokens_per_step.png
    """
    input:
        records=cells(f"{CELL}/records.jsonl"),
        list=rules.list_cells.output,
        sources=sources_of("pipeline.traces"),
    output:
        figure("tokens_per_step"),
    log:
        "results/logs/traces.log",
    message:
        "Drawing {output}"
    shell:
        "python -m pipeline.traces --cells @{input.list:q} --output {output:q} 2> >(tee {log:q} >&2)"


rule training_curves:
    """Draw the learning curves of what was trained here.

    python -m pipeline.training_curves --models results/models/verbalized-2m results/twins/verbalized-2m/shufflelm
        --output results/figures/training.png
    """
    input:
        records=trained_records(),
        sources=sources_of("pipeline.training_curves"),
    output:
        figure("training"),
    params:
        models=lambda wildcards, input: [str(Path(record).parent) for record in input.records],
    log:
        "results/logs/training_curves.log",
    message:
        "Drawing {output}"
    shell:
        "python -m pipeline.training_curves --models {params.models:q} --output {output:q} 2> >(tee {log:q} >&2)"


rule curves:
    """Draw quality against forward passes and speed, for the models that generate in parallel.

    python -m pipeline.curves --benchmark results/benchmark.csv --output results/figures/passes.png
    """
    input:
        benchmark="results/benchmark.csv",
        sources=sources_of("pipeline.curves"),
    output:
        figure("passes"),
    log:
        "results/logs/curves.log",
    message:
        "Drawing {output}"
    shell:
        "python -m pipeline.curves --benchmark {input.benchmark:q} --output {output:q} 2> >(tee {log:q} >&2)"


rule pages:
    """Turn the Markdown pages into HTML, for the report.

    python -m pipeline.pages --pages results/report.md results/tables/benchmark.md --output results/pages
    """
    input:
        pages=["results/report.md", *expand("results/tables/{name}.md", name=["benchmark", *ALL_TABLES])],
        sources=sources_of("pipeline.pages"),
    output:
        page("report", "1 Summary"),
        page("benchmark", "2 Tables"),
        [page(name, "2 Tables") for name in ALL_TABLES],
    params:
        folder=subpath(output[0], parent=True),
    log:
        "results/logs/pages.log",
    message:
        "Writing the report's pages"
    shell:
        "python -m pipeline.pages --pages {input.pages:q} --output {params.folder:q} 2> >(tee {log:q} >&2)"


rule gate:
    """Hold the table against the reference of its profile; a regression ends the run with status 1.

    No part of `all`: snakemake --cores all gate. With --config update_reference=true the table becomes the reference.

    python -m pipeline.gate --benchmark results/benchmark.csv --reference results/reference/laptop.csv
    """
    input:
        benchmark="results/benchmark.csv",
    params:
        reference=here([f"results/reference/{PROFILE}.csv"]),
        flags=["--update"] * SETTINGS.update_reference,
    log:
        "results/logs/gate.log",
    message:
        "Comparing with {params.reference}"
    shell:
        "python -m pipeline.gate --benchmark {input.benchmark:q} --reference {params.reference:q} {params.flags}"
        " 2> >(tee {log:q} >&2)"
