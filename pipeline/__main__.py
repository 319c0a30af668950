"""The command line: what there is, a text as a method writes it, two methods side by side, the cost of a row, lm-eval.

    python -m pipeline list methods
    python -m pipeline generate "Why is the sky blue?" --method prompt_lookup
    python -m pipeline compare autoregressive recycling "Why is the sky blue?"
    python -m pipeline rows --dtype float32
    python -m pipeline lm-eval --model shufflebench --model_args pretrained=FOLDER,method=recycling --tasks gsm8k

The rules of the DAG are commands of their own, ``python -m pipeline.<rule>``; what is timed for the table is
``python -m pipeline.generate``, one cell. Here nothing is written down. Torch is loaded only by what generates.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import UserError, command, tell

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Text generation faster than one token at a time: look at the methods, try them, compare them.\n\n"
    "What fills results/benchmark.csv is snakemake --cores all; here nothing is written down.",
)

MODEL, SAMPLING, MACHINE = "Model", "Sampling", "Machine"  # the panels of --help
Profile = Annotated[
    str, typer.Option("--profile", metavar="NAME", help="One of config/, or a YAML file.", rich_help_panel=MODEL)
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="One of the profile, or a folder.",
        rich_help_panel=MODEL,
        show_default="the profile's first",
    ),
]
Part = Annotated[
    list[str] | None,
    typer.Option(
        "--part",
        metavar="NAME=FOLDER",
        help="A trained part: draft, heads, mixer. May be repeated.",
        rich_help_panel=MODEL,
        show_default="what the DAG trained",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="TYPE",
        help="bfloat16, float16, float32, int8; auto: the checkpoint's.",
        rich_help_panel=MODEL,
        show_default="the profile's",
    ),
]
Prompt = Annotated[str | None, typer.Argument(help="The prompt; - reads it from standard input.", show_default=False)]
Limit = Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Most tokens of the text.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", metavar="TEXT", help="Ends the text. May be repeated.")]
Chat = Annotated[
    bool | None,
    typer.Option("--chat/--no-chat", help="Put the prompt as a user's message.", show_default="if there is a template"),
]
Temperature = Annotated[float, typer.Option(metavar="T", help="0 takes the likeliest token.", rich_help_panel=SAMPLING)]
TopK = Annotated[
    int, typer.Option(metavar="K", help="Draw from the K likeliest tokens; 0: from all.", rich_help_panel=SAMPLING)
]
TopP = Annotated[
    float, typer.Option(metavar="P", help="Draw from the likeliest, up to this mass.", rich_help_panel=SAMPLING)
]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Of the draws.", rich_help_panel=SAMPLING)]
Device = Annotated[
    str, typer.Option(metavar="NAME", help="auto (a GPU if there is one), cpu, cuda.", rich_help_panel=MACHINE)
]
Threads = Annotated[
    int, typer.Option("--num-threads", metavar="N", min=0, help="0: all cores.", rich_help_panel=MACHINE)
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the method. May be repeated."),
]


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(metavar="models|methods|options|tasks", help="What to list.")],
    profile: Profile = "laptop",
) -> None:
    """List the models, methods with their options, or tasks that there are, and what of them a profile runs.

    Tab-separated where the output is no terminal.
    """
    from pipeline.cli.choices import read_profile
    from pipeline.cli.listing import show

    show(what, read_profile(profile))


@app.command()
def generate(
    prompt: Prompt = None,
    method: Annotated[
        str, typer.Option("--method", "-m", metavar="NAME", help="See: list methods; list options.")
    ] = "prompt_lookup",
    option: Options = None,
    file: Annotated[Path | None, typer.Option(metavar="PATH", help="A text file that is the prompt.")] = None,
    mark: Annotated[str, typer.Option(metavar="TEXT", help="Printed between two steps.", show_default="nothing")] = "",
    model: ModelName = None,
    profile: Profile = "laptop",
    part: Part = None,
    max_new_tokens: Limit = 128,
    stop: Stop = None,
    chat: Chat = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = "auto",
    num_threads: Threads = 0,
) -> None:
    """Write a text with a method, and show what each step accepted: its tokens have one colour.

    The last line, on standard error, says how many steps it took and how fast it was.
    """
    from pipeline.cli import choices

    found = choices.find_model(choices.read_profile(profile), model, profile)
    chosen = choices.choose(found, method, option or [], choices.parse_parts(part or []))
    asked: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    asked |= {"max_new_tokens": max_new_tokens, "seed": seed, "stop": tuple(stop or ()), "chat": chat}

    from pipeline.cli.request import read_prompts, request_of
    from pipeline.cli.writing import write
    from pipeline.runner import Runner

    prompts, request = read_prompts(prompt, file), request_of(**asked)
    if len(prompts) > 1:
        raise UserError(f"file: {file} holds {len(prompts)} prompts; generate takes one, compare any number")
    runner = Runner(found.folder, dtype=dtype or found.dtypes[0], device=device, num_threads=num_threads)
    write(runner, chosen, request, prompts[0], mark)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A method; see: list methods.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another; or the same, with other options.")],
    prompt: Prompt = None,
    option_a: Annotated[
        list[str] | None, typer.Option("--option-a", "-a", metavar="NAME=VALUE", help="An option of A.")
    ] = None,
    option_b: Annotated[
        list[str] | None, typer.Option("--option-b", "-b", metavar="NAME=VALUE", help="An option of B.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="PATH", help="A text file, or JSONL with a 'prompt' a line.")
    ] = None,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Runs of each prompt by each.")] = 5,
    model: ModelName = None,
    profile: Profile = "laptop",
    part: Part = None,
    max_new_tokens: Limit = 128,
    stop: Stop = None,
    chat: Chat = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    dtype: Dtype = None,
    device: Device = "auto",
    num_threads: Threads = 0,
) -> None:
    """Run two methods on a prompt in turn: are their tokens equal, and how many times as fast is B as A?

    Waits for a timed job that runs on the machine.
    """
    from pipeline.cli import choices

    found = choices.find_model(choices.read_profile(profile), model, profile)
    pair = choices.choose_two(found, (first, option_a or []), (second, option_b or []), choices.parse_parts(part or []))
    asked: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    asked |= {"max_new_tokens": max_new_tokens, "seed": seed, "stop": tuple(stop or ()), "chat": chat}

    from pipeline.cli.comparing import compare as compare_pair
    from pipeline.cli.request import read_prompts, request_of
    from pipeline.runner import Runner

    prompts, request = read_prompts(prompt, file), request_of(**asked)
    runner = Runner(found.folder, dtype=dtype or found.dtypes[0], device=device, num_threads=num_threads)
    compare_pair(runner, pair, request, prompts, repeats)


@app.command()
def rows(
    width: Annotated[
        list[int] | None,
        typer.Option(
            "--width", "-w", metavar="N", min=1, help="Rows of a pass. May be repeated.", show_default="1 to 64"
        ),
    ] = None,
    context: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens in the cache.")] = 300,
    model: ModelName = None,
    profile: Profile = "laptop",
    dtype: Dtype = None,
    device: Device = "auto",
    num_threads: Threads = 0,
) -> None:
    """Measure what one more row of a forward pass costs on this machine: what row_cost and num_nodes are set by.

    row_cost is what each row behind the first adds, as a share of a pass of one row. Waits for a timed job that runs on
    the machine.
    """
    from pipeline.cli import choices

    found = choices.find_model(choices.read_profile(profile), model, profile)

    from pipeline.cli.rows import measure_and_show
    from pipeline.runner import Runner

    # Not padded: it is what a row costs that is asked.
    runner = Runner(
        found.folder, dtype=dtype or found.dtypes[0], device=device, num_threads=num_threads, decode_width=1
    )
    measure_and_show(runner.target, context, width or [])


@app.command(
    "lm-eval",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness with the model shufflebench registered; all arguments are its own.

    For example: --model shufflebench --model_args pretrained=FOLDER,method=prompt_lookup --tasks gsm8k
    """
    from pipeline.lm_eval_model import run_command

    run_command(context.args)


@command
def main() -> None:
    """Run the command line; what typer finds wrong is told in one line, as every other mistake."""
    try:
        status = app(sys.argv[1:] or ["--help"], prog_name="python -m pipeline", standalone_mode=False)
    except typer.Abort:
        status = 130
    except Exception as error:
        # The class of a wrong command line differs between versions of typer; what it says is under this name in all.
        if not hasattr(error, "format_message"):
            raise
        message = str(error.format_message()).rstrip(".")
        tell(message[:1].lower() + message[1:])
        sys.exit(2)
    if status == 130:  # Ctrl-C, as typer tells it
        print("interrupted", file=sys.stderr)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
