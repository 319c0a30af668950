"""``python -m pipeline generate``: a text as it is written, each step's tokens in the next colour.

What one colour covers was accepted in one forward pass of the target model: the longer the runs, the better the method
guessed. Where there is no colour (``NO_COLOR``, a file, a pipe) the text is plain; ``--mark`` puts a sign between the
steps. The last line goes to standard error, so that what is piped on is the text alone.

Example::

    write(runner, chosen, request, "Count to ten.")
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from tokenizers.decoders import DecodeStream

from decoding import Generation, SpeculativeDecoder
from pipeline.cli.choices import Chosen
from pipeline.cli.request import Request
from pipeline.methods import unlearned
from pipeline.registry import METHODS
from pipeline.runner import Runner, counted

COLOURS = ("cyan", "yellow")


class StepPrinter:
    """Prints the tokens of one step after the other as text.

    A character whose bytes lie in tokens of several steps has the colour of the step that completes it.

    Args:
        runner: whose tokenizer the ids are of.
        mark: what is printed between two steps.
    """

    def __init__(self, runner: Runner, mark: str = "") -> None:
        self.console = Console()
        self.mark, self.num_steps = mark, 0
        self._tokenizer = runner.tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def __call__(self, ids: Sequence[int]) -> None:
        """Print the next step's tokens."""
        text = "".join(self._stream.step(self._tokenizer, token) or "" for token in ids)
        if self.num_steps and text:
            self.console.out(self.mark, end="", highlight=False)
        self.console.out(text, end="", style=COLOURS[self.num_steps % len(COLOURS)], highlight=False)
        self.num_steps += 1


def write(runner: Runner, chosen: Chosen, request: Request, prompt: str, mark: str = "") -> Generation:
    """Generate a text and print it step by step, then how fast it was.

    Two tokens are generated first, unseen, so that what happens once a process is not timed.
    """
    ids = request.encode(runner, prompt)
    generates = runner.method(chosen.method, chosen.options, chosen.parts, request.sampling)
    with unlearned(generates):
        request.generate(runner, generates, ids, limit=2)
    printer = StepPrinter(runner, mark)
    try:
        generation = request.generate(runner, generates, ids, on_step=printer)
        if not isinstance(generates, SpeculativeDecoder):
            for step in steps_of(generation, in_order=METHODS[chosen.method].kind == "peer"):
                printer(step)
    finally:
        printer.console.line()
    print(told(generation, chosen), file=sys.stderr)
    return generation


def steps_of(generation: Generation, in_order: bool) -> Iterator[Sequence[int]]:
    """Yield the tokens of prefill and of each step, of a method that does not tell while it works.

    Where tokens are settled in another order than the text's, all at once.
    """
    emitted = [step.emitted for step in generation.steps] if in_order else []
    first = generation.num_new_tokens - sum(emitted)
    shown = 0
    for count in (first, *emitted):
        yield generation.output_ids[shown : shown + count]
        shown += count


def told(generation: Generation, chosen: Chosen) -> str:
    """Return how fast a text was generated, in one line."""
    tokens, seconds = generation.num_new_tokens, generation.total_s
    steps, per_step = counted(chosen.method, [generation])
    speed = f"{per_step:.2f} tokens/step, {tokens / seconds:.1f} tokens/s"
    ending = "; cut at the limit" if generation.truncated else ""
    first = f"first token after {1000 * generation.ttft_s:.0f} ms"
    in_steps = f"{steps} step" if steps == 1 else f"{steps} steps"
    return f"{chosen.label}: {tokens} tokens in {in_steps}: {speed} ({first}){ending}"
