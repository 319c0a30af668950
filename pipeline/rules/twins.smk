# Models that generate in parallel, and the autoregressive twin that each is held against: trained here on a task's own
# pairs, with one backbone, tokenizer, number of steps and seed.
PAIRS = "results/twins/{twin}/pairs"


rule pairs:
    """Write the pairs that a twin learns from, none of them evaluated, and train a tokenizer on them.

    python -m pipeline.pairs --task verbalized_plain --evaluated results/tasks/verbalized_plain/data.jsonl
        --num-pairs 20000 --vocab-size 512 --seed 0 --output results/twins/verbalized/pairs
    """
    input:
        local=lambda wildcards: local_path(SETTINGS.twins[wildcards.twin]),
        evaluated=lambda wildcards: f"results/tasks/{SETTINGS.twins[wildcards.twin].task}/data.jsonl",
        sources=lambda wildcards: sources_of("pipeline.pairs", TASKS[SETTINGS.twins[wildcards.twin].task].source),
    output:
        record=f"{PAIRS}/pairs.json",
    params:
        task=lambda wildcards: SETTINGS.twins[wildcards.twin].task,
        origin=lambda wildcards: origin(SETTINGS.twins[wildcards.twin], ("path",)),
        limits=lambda wildcards: origin(SETTINGS.twins[wildcards.twin], ("num_pairs", "max_target_tokens")),
        vocab_size=lambda wildcards: SETTINGS.twins[wildcards.twin].vocab_size,
        seed=lambda wildcards: SETTINGS.twins[wildcards.twin].seed,
        folder=subpath(output.record, parent=True),
    log:
        "results/logs/pairs/{twin}.log",
    message:
        "Writing the training pairs of {wildcards.twin}"
    shell:
        "python -m pipeline.pairs --task {params.task:q} {params.origin:q} --evaluated {input.evaluated:q}"
        " {params.limits:q} --vocab-size {params.vocab_size} --seed {params.seed} --errors-as-rows"
        " --output {params.folder:q} 2> >(tee {log:q} >&2)"


rule train_twin:
    """Train the autoregressive model that the parallel generators are held against.

    python -m pipeline.train --generator autoregressive --pairs results/twins/verbalized/pairs --backbone '{"hidden_size": 192}'
        --steps 600 --batch-size 64 --learning-rate 0.002 --seed 0 --output results/models/verbalized
    """
    input:
        pairs=f"{PAIRS}/pairs.json",
        sources=sources_of("pipeline.train", "shuffle.backbone"),
    output:
        source="results/models/{twin}/source.json",
    wildcard_constraints:
        twin="|".join(map(re.escape, SETTINGS.twins)) or "(?!)",
    params:
        pairs=subpath(input.pairs, parent=True),
        backbone=backbone,
        recipe=recipe,
        folder=subpath(output.source, parent=True),
        device=SETTINGS.device,
    threads: TRAINING_THREADS
    priority: 2
    log:
        "results/logs/train/{twin}/autoregressive.log",
    message:
        "Training the autoregressive twin {wildcards.twin}"
    shell:
        "python -m pipeline.train --generator autoregressive --pairs {params.pairs:q} --backbone {params.backbone:q}"
        " {params.recipe:q} --device {params.device} --errors-as-rows --output {params.folder:q} 2> >(tee {log:q} >&2)"


rule distill:
    """Let the twin answer its training sources: what a distilled generator learns from. It takes all cores.

    python -m pipeline.distill --model results/models/verbalized --pairs results/twins/verbalized/pairs
        --output results/twins/verbalized/distilled.jsonl
    """
    input:
        pairs=f"{PAIRS}/pairs.json",
        model="results/models/{twin}/source.json",
        sources=sources_of("pipeline.distill"),
    output:
        "results/twins/{twin}/distilled.jsonl",
    params:
        pairs=subpath(input.pairs, parent=True),
        model=subpath(input.model, parent=True),
    threads: workflow.cores
    resources:
        timed=1,
    log:
        "results/logs/distill/{twin}.log",
    message:
        "Letting {wildcards.twin} answer its training sources"
    shell:
        "python -m pipeline.distill --model {params.model:q} --pairs {params.pairs:q} --errors-as-rows"
        " --output {output:q} 2> >(tee {log:q} >&2)"


rule train_generator:
    """Train a model that generates in parallel on what its twin learned from, or on the twin's answers. It takes half the cores.

    One that starts from the twin's weights also gets: --start-from results/models/verbalized

    python -m pipeline.train --generator shufflelm --pairs results/twins/verbalized/pairs --backbone '{"hidden_size": 192}'
        --options '{}' --steps 600 --batch-size 64 --learning-rate 0.002 --seed 0 --output results/twins/verbalized/shufflelm
    """
    input:
        pairs=f"{PAIRS}/pairs.json",
        distilled=distilled,
        twin=twin_to_start_from,
        sources=lambda wildcards: sources_of("pipeline.train", GENERATORS[wildcards.generator].module),
    output:
        record="results/twins/{twin}/{generator}/generator.json",
    params:
        definition=lambda wildcards: GENERATORS[wildcards.generator].definition,
        pairs=subpath(input.pairs, parent=True),
        distilled=lambda wildcards, input: ["--distilled", str(input.distilled)] if input.distilled else [],
        start=lambda wildcards, input: ["--start-from", str(Path(input.twin).parent)] if input.twin else [],
        backbone=backbone,
        options=lambda wildcards: generator_options(wildcards.twin, wildcards.generator),
        recipe=recipe,
        folder=subpath(output.record, parent=True),
        device=SETTINGS.device,
    threads: TRAINING_THREADS
    priority: lambda wildcards: 3 if wildcards.generator.startswith("twostream") else 2  # its two streams take twice as long
    log:
        "results/logs/train/{twin}/{generator}.log",
    message:
        "Training {wildcards.generator} beside {wildcards.twin}"
    shell:
        "python -m pipeline.train --generator {wildcards.generator:q} --pairs {params.pairs:q} {params.distilled:q} {params.start:q}"
        " --backbone {params.backbone:q} --options {params.options:q} {params.recipe:q}"
        " --device {params.device} --errors-as-rows --output {params.folder:q} 2> >(tee {log:q} >&2)"
