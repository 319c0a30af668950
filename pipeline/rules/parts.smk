# What methods need beside the target: a draft model, Medusa heads and a mixer, trained on text that the target itself
# writes, and that text to look up.
# A timed cell takes all cores, so none of this ever runs beside one. Writing text takes all cores too; trainings go two at a
# time, half of the cores each: steps this small gain little from more threads.
EMBEDDED_SOURCES = [task.source for task in TASKS.values() if "embedded" in task.origins]
PART = f"results/parts/{{model}}/{SETTINGS.training.name}"


rule training_prompts:
    """Gather prompts in the evaluated tasks' form, outside every evaluated set; what overlaps with one is dropped.

    python -m pipeline.training_prompts --model results/models/smollm2-135m --num-tokens 200000 --max-new-tokens 192 --seed 0
        --output results/parts/smollm2-135m/default/prompts.jsonl
    """
    input:
        model="results/models/{model}/source.json",
        sources=sources_of("pipeline.training_prompts", "pipeline.tasks.reading", *EMBEDDED_SOURCES, without=["pipeline.sandbox"]),
    output:
        prompts=f"{PART}/prompts.jsonl",
        record=f"{PART}/prompts.json",
    params:
        model=subpath(input.model, parent=True),
        num_tokens=SETTINGS.training.num_tokens,
        max_new_tokens=SETTINGS.training.max_new_tokens,
        seed=SETTINGS.training.seed,
        prompt_digests=[sources.prompt_digest(task.yaml) for task in TASKS.values()],
        device=SETTINGS.device,
    threads: workflow.cores
    resources:
        timed=1,
    log:
        f"results/logs/training_prompts/{{model}}/{SETTINGS.training.name}.log",
    message:
        "Gathering training prompts for {wildcards.model}"
    shell:
        "python -m pipeline.training_prompts --model {params.model:q}"
        " --num-tokens {params.num_tokens} --max-new-tokens {params.max_new_tokens} --seed {params.seed}"
        " --device {params.device} --errors-as-rows --output {output.prompts:q} 2> >(tee {log:q} >&2)"


rule training_overlap:
    """Hold the training prompts against what this profile evaluates; an overlap ends the run.

    python -m pipeline.training_overlap --prompts results/parts/smollm2-135m/default/prompts.jsonl
        --evaluated results/tasks/gsm8k/data.jsonl --output results/parts/smollm2-135m/default/overlap/lossless.json
    """
    input:
        prompts=f"{PART}/prompts.jsonl",
        evaluated=expand("results/tasks/{task}/data.jsonl", task=SETTINGS.tasks),
        sources=sources_of("pipeline.training_overlap", without=["pipeline.sandbox"]),
    output:
        f"{PART}/overlap/{PROFILE}.json",
    log:
        f"results/logs/training_overlap/{{model}}/{SETTINGS.training.name}.{PROFILE}.log",
    message:
        "Comparing the training prompts with what is evaluated"
    shell:
        "python -m pipeline.training_overlap --prompts {input.prompts:q} --evaluated {input.evaluated:q}"
        " --output {output:q} 2> >(tee {log:q} >&2)"


rule selfgen:
    """Let the target answer the training prompts. The journal beside the text lets a killed run go on.

    So it is no output: Snakemake removes the outputs of a job that it runs again. Nor are the hidden states beside it.

    python -m pipeline.selfgen --model results/models/smollm2-135m --prompts results/parts/smollm2-135m/default/prompts.jsonl
        --num-tokens 200000 --temperature 0.0 --batch-size 64 --seed 0
        --output results/parts/smollm2-135m/default/text.jsonl
    """
    input:
        model="results/models/{model}/source.json",
        prompts=f"{PART}/prompts.jsonl",
        sources=sources_of("pipeline.selfgen"),
    output:
        text=f"{PART}/text.jsonl",
        record=f"{PART}/text.json",
    params:
        model=subpath(input.model, parent=True),
        num_tokens=SETTINGS.training.num_tokens,
        temperature=SETTINGS.training.temperature,
        batch_size=SETTINGS.training.batch_size,
        seed=SETTINGS.training.seed,
        device=SETTINGS.device,
    threads: workflow.cores
    resources:
        timed=1,
    log:
        f"results/logs/selfgen/{{model}}/{SETTINGS.training.name}.log",
    message:
        "Letting {wildcards.model} write {params.num_tokens} tokens of training text"
    shell:
        "python -m pipeline.selfgen --model {params.model:q} --prompts {input.prompts:q}"
        " --num-tokens {params.num_tokens} --temperature {params.temperature} --batch-size {params.batch_size}"
        " --seed {params.seed} --device {params.device} --errors-as-rows --output {output.text:q} 2> >(tee {log:q} >&2)"


rule train_draft:
    """Train a draft model: some of the target's layers, on text that the target wrote.

    python -m pipeline.train_draft --model results/models/smollm2-135m --text results/parts/smollm2-135m/default/text.jsonl
        --epochs 3 --shortlist-size 8192 --prompt-tokens 192 --tokens-per-batch 1024 --seed 0
        --output results/parts/smollm2-135m/default/draft
    """
    input:
        model="results/models/{model}/source.json",
        text=f"{PART}/text.jsonl",
        sources=sources_of("pipeline.train_draft"),
    output:
        record=f"{PART}/draft/draft.json",
    params:
        model=subpath(input.model, parent=True),
        folder=subpath(output.record, parent=True),
        layers=["--layers", *SETTINGS.training.draft.layers] if SETTINGS.training.draft.layers else [],
        epochs=SETTINGS.training.draft.epochs,
        shortlist_size=SETTINGS.training.draft.shortlist_size,
        prompt_tokens=SETTINGS.training.draft.prompt_tokens,
        tokens_per_batch=SETTINGS.training.draft.tokens_per_batch,
        seed=SETTINGS.training.seed,
        device=SETTINGS.device,
    threads: TRAINING_THREADS
    priority: 3  # as long as heads and mixer together: begun last, it leaves half of the cores idle
    log:
        f"results/logs/train_draft/{{model}}/{SETTINGS.training.name}.log",
    message:
        "Training a draft model for {wildcards.model}"
    shell:
        "python -m pipeline.train_draft --model {params.model:q} --text {input.text:q} {params.layers}"
        " --epochs {params.epochs} --shortlist-size {params.shortlist_size} --prompt-tokens {params.prompt_tokens}"
        " --tokens-per-batch {params.tokens_per_batch} --seed {params.seed} --device {params.device} --errors-as-rows"
        " --output {params.folder:q} 2> >(tee {log:q} >&2)"


rule train_heads:
    """Train Medusa heads on text that the target wrote.

    python -m pipeline.train_heads --model results/models/smollm2-135m --text results/parts/smollm2-135m/default/text.jsonl
        --num-heads 4 --epochs 2 --shortlist-size 8192 --batch-size 512 --seed 0
        --output results/parts/smollm2-135m/default/heads
    """
    input:
        model="results/models/{model}/source.json",
        text=f"{PART}/text.jsonl",
        sources=sources_of("pipeline.train_heads"),
    output:
        record=f"{PART}/heads/heads.json",
    params:
        model=subpath(input.model, parent=True),
        folder=subpath(output.record, parent=True),
        settings=flags_of(SETTINGS.training.heads.model_dump()),
        seed=SETTINGS.training.seed,
        device=SETTINGS.device,
    threads: TRAINING_THREADS
    priority: 2
    log:
        f"results/logs/train_heads/{{model}}/{SETTINGS.training.name}.log",
    message:
        "Training Medusa heads for {wildcards.model}"
    shell:
        "python -m pipeline.train_heads --model {params.model:q} --text {input.text:q} {params.settings:q}"
        " --seed {params.seed} --device {params.device} --errors-as-rows --output {params.folder:q} 2> >(tee {log:q} >&2)"


rule train_mixer:
    """Train FasterDecodeMixer's slots on text that the target wrote.

    python -m pipeline.train_mixer --model results/models/smollm2-135m --text results/parts/smollm2-135m/default/text.jsonl
        --num-slots 4 --num-positions 4 --num-mixer-layers 1 --epochs 3 --shortlist-size 8192 --batch-size 512
        --seed 0 --output results/parts/smollm2-135m/default/mixer
    """
    input:
        model="results/models/{model}/source.json",
        text=f"{PART}/text.jsonl",
        sources=sources_of("pipeline.train_mixer"),
    output:
        record=f"{PART}/mixer/mixer.json",
    params:
        model=subpath(input.model, parent=True),
        folder=subpath(output.record, parent=True),
        settings=flags_of(SETTINGS.training.mixer.model_dump()),
        seed=SETTINGS.training.seed,
        device=SETTINGS.device,
    threads: TRAINING_THREADS
    priority: 2
    log:
        f"results/logs/train_mixer/{{model}}/{SETTINGS.training.name}.log",
    message:
        "Training a mixer for {wildcards.model}"
    shell:
        "python -m pipeline.train_mixer --model {params.model:q} --text {input.text:q} {params.settings:q}"
        " --seed {params.seed} --device {params.device} --errors-as-rows --output {params.folder:q} 2> >(tee {log:q} >&2)"


rule build_datastore:
    """Make the datastore that REST looks up, of the text that the target wrote.

    python -m pipeline.build_datastore --text results/parts/smollm2-135m/default/text.jsonl
        --output results/parts/smollm2-135m/default/datastore
    """
    input:
        text=f"{PART}/text.jsonl",
        sources=sources_of("pipeline.build_datastore"),
    output:
        record=f"{PART}/datastore/datastore.json",
    params:
        folder=subpath(output.record, parent=True),
    priority: 1
    log:
        f"results/logs/build_datastore/{{model}}/{SETTINGS.training.name}.log",
    message:
        "Making a datastore of what {wildcards.model} wrote"
    shell:
        "python -m pipeline.build_datastore --text {input.text:q} --errors-as-rows --output {params.folder:q}"
        " 2> >(tee {log:q} >&2)"
