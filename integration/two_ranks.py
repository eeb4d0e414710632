"""One rank of a tensor-parallel run, by transformers' own plan, on CPUs.

`python -m torch.distributed.run --standalone --nproc-per-node 2 two_ranks.py CHECKPOINT
LOGITS`: loads the checkpoint split among the ranks, and saves its logits on TOKENS.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

TOKENS = torch.arange(24)[None] % 37


def split(directory: str) -> Any:
    """The model in a directory, of whose plan this rank holds its share."""
    try:  # transformers 5.18 and later
        from transformers.distributed.configuration_utils import DistributedConfig

        how: dict[str, Any] = {
            "distributed_config": DistributedConfig(tp_plan="auto", tp_size=2)
        }
    except (ImportError, TypeError):
        how = {"tp_plan": "auto"}
    return AutoModelForCausalLM.from_pretrained(directory, **how)


def main() -> None:
    """Compute the logits with all ranks, save them on the first."""
    torch.set_num_threads(1)
    model = split(sys.argv[1])
    query: Any = model.model.layers[0].self_attn.q_proj.weight
    assert 2 * query.to_local().shape[0] == query.shape[0], "the query is not split"
    with torch.no_grad():
        logits: Any = model(TOKENS).logits
    if dist.get_rank() == 0:
        torch.save(getattr(logits, "full_tensor", lambda: logits)(), sys.argv[2])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
