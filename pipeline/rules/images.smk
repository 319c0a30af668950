# Token-Shuffle on images: digits generated, judged and timed, and what an image costs as it grows. Made where the profile
# has a section `images`; by name, results/image.csv is made of that section's defaults in any profile.
DRAWN = f"results/images/{PROFILE}"
IMAGE_METHODS = expand("window_{window}/{guidance}", window=IMAGES.windows, guidance=IMAGES.guidances)


rule image_digits:
    """Turn the digits into tokens.

    python -m pipeline.images.tokenise --data digits --patch-size 2 --codebook-size 64 --output results/images/laptop/digits
    """
    input:
        sources=sources_of("pipeline.images.tokenise"),
    output:
        record=f"{DRAWN}/digits/tokenizer.json",
    params:
        asked=["--data", "digits", *origin(IMAGES, ("patch_size", "codebook_size", "seed"))],
        folder=subpath(output.record, parent=True),
    log:
        f"results/logs/images/{PROFILE}/digits.log",
    message:
        "Turning digits into tokens"
    shell:
        "python -m pipeline.images.tokenise {params.asked:q} --output {params.folder:q} 2> >(tee {log:q} >&2)"


# By hand: python -m pipeline.images.tokenise --data photographs --patch-size 16 --codebook-size 512 --sides 256 512 ...
use rule image_digits as image_photographs with:
    output:
        record=f"{DRAWN}/photographs/tokenizer.json",
    params:
        asked=["--data", "photographs", *origin(IMAGES.cost, ("patch_size", "codebook_size")), "--sides", *IMAGES.cost.sides],
        folder=subpath(output.record, parent=True),
    log:
        f"results/logs/images/{PROFILE}/photographs.log",
    message:
        "Turning photographs into tokens"


rule image_train:
    """Train an image transformer for one size of window.

    python -m pipeline.images.train --tokens results/images/laptop/digits --window 2 --shuffle-blocks 1
        --backbone '{"hidden_size": 96}' --steps 400 --batch-size 64 --learning-rate 0.002 --seed 0
        --output results/images/laptop/window_2
    """
    input:
        tokens=f"{DRAWN}/digits/tokenizer.json",
        sources=sources_of("pipeline.images.train", "shuffle.tokenshuffle.model"),
    output:
        record=f"{DRAWN}/window_{{window}}/model.json",
    params:
        tokens=subpath(input.tokens, parent=True),
        shape=origin(IMAGES, ("shuffle_blocks",)),
        backbone=json.dumps(IMAGES.backbone.model_dump(), sort_keys=True),
        recipe=origin(IMAGES, ("steps", "batch_size", "learning_rate", "seed")),
        folder=subpath(output.record, parent=True),
        device=SETTINGS.device,
    threads: TRAINING_THREADS
    priority: 2
    log:
        f"results/logs/images/{PROFILE}/train_{{window}}.log",
    message:
        "Training the image transformer of {wildcards.window} x {wildcards.window} tokens a row"
    shell:
        "python -m pipeline.images.train --tokens {params.tokens:q} --window {wildcards.window} {params.shape:q}"
        " --backbone {params.backbone:q} {params.recipe:q} --device {params.device}"
        " --output {params.folder:q} 2> >(tee {log:q} >&2)"


rule image_generate:
    """Let an image transformer draw digits of every class under one guidance.

    python -m pipeline.images.generate --model results/images/laptop/window_2 --tokens results/images/laptop/digits
        --guidance linear --guidance-scale 2.0 --sampling '{"temperature": 1.0}' --images-per-class 120 --seed 0
        --output results/images/laptop/samples/window_2/linear
    """
    input:
        tokens=f"{DRAWN}/digits/tokenizer.json",
        model=f"{DRAWN}/window_{{window}}/model.json",
        sources=sources_of("pipeline.images.generate"),
    output:
        record=f"{DRAWN}/samples/window_{{window}}/{{guidance}}/samples.json",
    params:
        tokens=subpath(input.tokens, parent=True),
        model=subpath(input.model, parent=True),
        asked=origin(IMAGES, ("guidance_scale", "images_per_class", "seed")),
        sampling=json.dumps(IMAGES.sampling.model_dump(), sort_keys=True),
        folder=subpath(output.record, parent=True),
    threads: TRAINING_THREADS
    log:
        f"results/logs/images/{PROFILE}/generate_{{window}}_{{guidance}}.log",
    message:
        "Drawing digits with {wildcards.window} x {wildcards.window} tokens a row, guidance {wildcards.guidance}"
    shell:
        "python -m pipeline.images.generate --model {params.model:q} --tokens {params.tokens:q}"
        " --guidance {wildcards.guidance:q} {params.asked:q} --sampling {params.sampling:q} --output {params.folder:q}"
        " 2> >(tee {log:q} >&2)"


rule image_score:
    """Judge all digits that were drawn, beside real ones. No model is loaded.

    python -m pipeline.images.score --tokens results/images/laptop/digits
        --samples results/images/laptop/samples/window_2/linear --output results/images/laptop/scores.json
    """
    input:
        tokens=f"{DRAWN}/digits/tokenizer.json",
        samples=expand(f"{DRAWN}/samples/{{method}}/samples.json", method=IMAGE_METHODS),
        sources=sources_of("pipeline.images.score"),
    output:
        f"{DRAWN}/scores.json",
    params:
        tokens=subpath(input.tokens, parent=True),
        samples=lambda wildcards, input: [str(Path(record).parent) for record in input.samples],
    log:
        f"results/logs/images/{PROFILE}/score.log",
    message:
        "Judging the digits"
    shell:
        "python -m pipeline.images.score --tokens {params.tokens:q} --samples {params.samples:q} --output {output:q}"
        " 2> >(tee {log:q} >&2)"


rule image_timing:
    """Time a digit with every window and guidance, in turn in one process. It takes all cores.

    python -m pipeline.images.timing --models results/images/laptop/window_1 results/images/laptop/window_2
        --guidances none linear --guidance-scale 2.0 --sampling '{"temperature": 1.0}' --images 30 --num-threads 0
        --output results/images/laptop/timing.json
    """
    input:
        models=expand(f"{DRAWN}/window_{{window}}/model.json", window=IMAGES.windows),
        sources=sources_of("pipeline.images.timing"),
    output:
        f"{DRAWN}/timing.json",
    params:
        models=lambda wildcards, input: [str(Path(record).parent) for record in input.models],
        guidances=IMAGES.guidances,
        scale=IMAGES.guidance_scale,
        sampling=json.dumps(IMAGES.sampling.model_dump(), sort_keys=True),
        images=IMAGES.timed_images,
        num_threads=SETTINGS.num_threads,
    threads: workflow.cores
    resources:
        timed=1,
    log:
        f"results/logs/images/{PROFILE}/timing.log",
    message:
        "Timing digits"
    shell:
        "python -m pipeline.images.timing --models {params.models:q} --guidances {params.guidances:q}"
        " --guidance-scale {params.scale} --sampling {params.sampling:q} --images {params.images}"
        " --num-threads {params.num_threads} --output {output:q} 2> >(tee {log:q} >&2)"


rule image_cost:
    """Read a photograph at growing resolution, each size of window in a process of its own. It takes all cores.

    python -m pipeline.images.cost --tokens results/images/laptop/photographs --sides 256 512 --windows 1 2 4
        --backbone '{"hidden_size": 256}' --shuffle-blocks 1 --repeats 5 --num-threads 0
        --output results/images/laptop/cost.json
    """
    input:
        tokens=f"{DRAWN}/photographs/tokenizer.json",
        sources=sources_of("pipeline.images.cost"),
    output:
        f"{DRAWN}/cost.json",
    params:
        tokens=subpath(input.tokens, parent=True),
        sides=IMAGES.cost.sides,
        windows=IMAGES.cost.windows,
        shape=origin(IMAGES.cost, ("shuffle_blocks", "repeats")),
        backbone=json.dumps(IMAGES.cost.backbone.model_dump(), sort_keys=True),
        num_threads=SETTINGS.num_threads,
    threads: workflow.cores
    resources:
        timed=1,
    log:
        f"results/logs/images/{PROFILE}/cost.log",
    message:
        "Measuring what an image costs"
    shell:
        "python -m pipeline.images.cost --tokens {params.tokens:q} --sides {params.sides} --windows {params.windows}"
        " {params.shape:q} --backbone {params.backbone:q} --num-threads {params.num_threads} --output {output:q}"
        " 2> >(tee {log:q} >&2)"


rule image_collect:
    """Gather what was judged, timed and counted in one table.

    python -m pipeline.images.collect --digits results/images/laptop/digits --scores results/images/laptop/scores.json
        --timing results/images/laptop/timing.json --photographs results/images/laptop/photographs
        --cost results/images/laptop/cost.json --profile laptop --output results/image.csv
    """
    input:
        digits=f"{DRAWN}/digits/tokenizer.json",
        photographs=f"{DRAWN}/photographs/tokenizer.json",
        scores=f"{DRAWN}/scores.json",
        timing=f"{DRAWN}/timing.json",
        cost=f"{DRAWN}/cost.json",
        sources=sources_of("pipeline.images.collect"),
    output:
        "results/image.csv",
    params:
        digits=subpath(input.digits, parent=True),
        photographs=subpath(input.photographs, parent=True),
        profile=PROFILE,
    log:
        "results/logs/image_collect.log",
    message:
        "Collecting {output}"
    shell:
        "python -m pipeline.images.collect --digits {params.digits:q} --scores {input.scores:q} --timing {input.timing:q}"
        " --photographs {params.photographs:q} --cost {input.cost:q} --profile {params.profile:q} --output {output:q}"
        " 2> >(tee {log:q} >&2)"


rule image_figures:
    """Draw quality against speed, and cost against resolution.

    python -m pipeline.images.figures --images results/image.csv --output results/figures
    """
    input:
        images="results/image.csv",
        sources=sources_of("pipeline.images.figures"),
    output:
        figure("image_quality"),
        figure("image_cost"),
    params:
        folder=subpath(output[0], parent=True),
    log:
        "results/logs/image_figures.log",
    message:
        "Drawing the figures of images"
    shell:
        "python -m pipeline.images.figures --images {input.images:q} --output {params.folder:q} 2> >(tee {log:q} >&2)"


rule image_sheet:
    """Draw generated digits beside real ones.

    python -m pipeline.images.sheet --tokens results/images/laptop/digits
        --samples results/images/laptop/samples/window_2/linear --output results/figures/image_sheet.png
    """
    input:
        tokens=f"{DRAWN}/digits/tokenizer.json",
        samples=expand(f"{DRAWN}/samples/{{method}}/samples.json", method=IMAGE_METHODS),
        sources=sources_of("pipeline.images.sheet"),
    output:
        figure("image_sheet"),
    params:
        tokens=subpath(input.tokens, parent=True),
        samples=lambda wildcards, input: [str(Path(record).parent) for record in input.samples],
    log:
        "results/logs/image_sheet.log",
    message:
        "Drawing {output}"
    shell:
        "python -m pipeline.images.sheet --tokens {params.tokens:q} --samples {params.samples:q} --output {output:q}"
        " 2> >(tee {log:q} >&2)"


rule image_table:
    """Draw Token-Shuffle's table: published figures beside ours.

    python -m pipeline.images.table --images results/image.csv --output results/tables
    """
    input:
        images="results/image.csv",
        sources=sources_of("pipeline.images.table"),
        published=here(["pipeline/images/published.yaml"]),
    output:
        multiext("results/tables/token_shuffle", ".csv", ".md", ".tex"),
    params:
        folder=subpath(output[0], parent=True),
    log:
        "results/logs/image_table.log",
    message:
        "Drawing Token-Shuffle's table"
    shell:
        "python -m pipeline.images.table --images {input.images:q} --output {params.folder:q} 2> >(tee {log:q} >&2)"
