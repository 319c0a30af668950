"""Where a training runs, or the writing of its text: ``--device``, of the configuration's ``device``.

transformers' Trainer, and what is written here for it, take a GPU where torch finds one. So to train on the CPU the
cards are hidden from this process; and where one is asked for, that it is there is seen to before anything is read.
Example::

    add_device(parser)
    given = parser.parse_args()
    claim_device(given.device)
"""

from __future__ import annotations

import argparse
import os

from pipeline.errors import UserError, nearest

DEVICES = ("auto", "cpu", "cuda")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Let a command be told its device."""
    parser.add_argument("--device", default="auto", help="auto: a GPU where there is one | cpu | cuda")


def claim_device(name: str) -> None:
    """Let this process train on the device called ``name``, and on no other; to be called before a GPU is used.

    Raises:
        UserError: there is no such device, or torch finds no GPU here.
    """
    if name not in DEVICES:
        raise UserError(f"device: unknown {name!r}; {nearest(name, DEVICES)}")
    if name == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if name == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("device: 'cuda' was asked for, but torch finds no GPU; did you mean 'cpu'?")
