"""Every generator under FSDP2 (``torch.distributed.fsdp.fully_shard``), on two processes of the processor.

A Trainer shards only what trains on an accelerator, by the same function and the same ``_no_split_modules``; here it is
called directly: two steps of two sharded processes must leave the weights that two steps of one whole model leave.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from shuffle.backbone import ParallelModel
from shuffle.diffusion.config import DiffusionConfig
from shuffle.diffusion.model import DiffusionTransformer
from shuffle.examples import Example
from shuffle.shufflelm.config import ShuffleConfig
from shuffle.shufflelm.model import ShuffleLM
from shuffle.twostream.config import TwoStreamConfig
from shuffle.twostream.model import LlamaTwoStreamForCausalLM

SHAPE = {"vocab_size": 24, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "eos_token_id": 2}
EXAMPLES = [Example((5, 6, 7), (8, 9, 10, 2)), Example((9,), (4, 2)), Example((3, 4), (5, 6, 2))]
STEPS = 2


def models() -> dict[str, ParallelModel]:
    torch.manual_seed(0)
    return {
        "shufflelm": ShuffleLM(ShuffleConfig(**SHAPE, max_parallel_tokens=8, max_position_embeddings=32)),
        "diffusion": DiffusionTransformer(DiffusionConfig(**SHAPE, block_length=4, max_position_embeddings=32)),
        "twostream": LlamaTwoStreamForCausalLM(TwoStreamConfig(**SHAPE, max_position_embeddings=32)),
    }


def trained(model: ParallelModel) -> list[float]:
    """Take some steps and return their losses; all processes see the same batch and draw the same numbers."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for step in range(STEPS):
        torch.manual_seed(step)
        loss = model(**model.collate(EXAMPLES)).loss  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


def weights(model: ParallelModel) -> dict[str, Tensor]:
    """The whole weights, gathered from all processes where they are in parts."""
    return {name: getattr(tensor, "full_tensor", lambda t=tensor: t)() for name, tensor in model.state_dict().items()}


def worker() -> None:
    """What each of the two processes does."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    for (name, whole), sharded in zip(models().items(), models().values(), strict=True):
        split = [module for module in sharded.modules() if type(module).__name__ in sharded._no_split_modules]
        assert len(split) == SHAPE["num_layers"]
        for module in (*split, sharded):
            fully_shard(module, mesh=mesh)
        parts = [p for p in sharded.parameters() if isinstance(p, DTensor)]
        assert len(parts) == len(list(whole.parameters()))
        assert sum(p.to_local().numel() for p in parts) < 0.6 * sum(p.numel() for p in whole.parameters())
        torch.testing.assert_close(trained(sharded), trained(whole), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(weights(sharded), weights(whole), rtol=1e-4, atol=1e-5)
        print(f"{name} {distributed.get_rank()};", flush=True)
    distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no processes")
def test_sharded_models_learn_what_whole_ones_learn() -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, __file__],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Of both processes, whose lines may run into each other.
    assert all(done.stdout.count(f"{name} {rank};") == 1 for name in models() for rank in (0, 1)), done.stdout


if __name__ == "__main__":
    worker()
