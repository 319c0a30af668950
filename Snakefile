# From models and tasks to one honest table: snakemake --cores all results/benchmark.csv
#
# The profile is config/laptop.yaml; another: --config profile=smoke, or a file of your own: --configfile my.yaml.
# Any single value: --config 'tasks={humaneval: {num_prompts: 2}}'; null removes a key: 'methods={hf_greedy: null}'
# One cell: snakemake --cores all results/cells/laptop/smollm2-135m/bfloat16/humaneval/prompt_lookup/0/score.json
#
# `snakemake --lint` asks for a conda environment or a container for each rule and has no other complaint. There is one
# environment for all rules, the locked one that Snakemake itself runs in: timings need one set of libraries.

report: "pipeline/captions/workflow.rst"


include: "pipeline/rules/common.smk"
include: "pipeline/rules/models.smk"
include: "pipeline/rules/tasks.smk"
include: "pipeline/rules/parts.smk"
include: "pipeline/rules/twins.smk"
include: "pipeline/rules/cells.smk"
include: "pipeline/rules/results.smk"
include: "pipeline/rules/exactness.smk"
include: "pipeline/rules/images.smk"


localrules: all, collect, benchmark_table, paper_tables, tables, answers, figures, overview, traces, training_curves
localrules: list_cells, curves, strata, pages, gate, exactness, image_collect, image_figures, image_sheet, image_table


rule all:
    default_target: True
    input:
        "results/benchmark.csv",
        "results/report.md",
        rules.tables.input,
        rules.pages.output,
        [f"results/figures/{name}.png" for name in FIGURES + IMAGE_FIGURES],
        ["results/image.csv"] * bool(SETTINGS.images),
