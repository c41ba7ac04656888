"""Do digests run at the speed of memory? `digest_all` over 1 GB of float32 against one pass of `Tensor.copy_` over it.

Both with torch's default number of threads. The state comes as the tensors of ten ResNet-50s, and as one tensor.
`copy_` writes into memory that has been written to before, so that it pays for no page faults.
"""

from __future__ import annotations

import torch
from measure import Comparison, Side, compare, resnet, rounds_asked_for, write
from torch import Tensor

import frostline as fl

GOAL = 1.0
COPIES = 10
ELEMENTS = 250_000_000


def compare_over(name: str, state: dict[str, Tensor], rounds: int) -> Comparison:
    pairs = [(torch.zeros_like(tensor), tensor) for tensor in state.values()]

    def copy() -> None:
        for target, source in pairs:
            target.copy_(source)

    side = Side("frostline.state.digest_all", lambda: fl.state.digest_all(state), repeats=3)
    return compare(name, side, Side("Tensor.copy_", copy, repeats=3), rounds=rounds, goal=GOAL, warmup=2)


def main() -> None:
    rounds = rounds_asked_for(21)
    torch.manual_seed(0)
    layers = resnet("resnet50", torch.randn(2, 3, 64, 64)).state_dict()
    layers = {path: tensor for path, tensor in layers.items() if tensor.dtype == torch.float32}
    many = {f"{copy}.{path}": tensor.clone() for copy in range(COPIES) for path, tensor in layers.items()}
    size = sum(tensor.nbytes for tensor in many.values())
    results = [compare_over(f"digest, {len(many):,} tensors: digest_all / copy_", many, rounds)]
    del many
    results.append(compare_over("digest, one tensor: digest_all / copy_", {"it": torch.randn(ELEMENTS)}, rounds))
    settings = {"many_tensors_bytes": size, "one_tensor_bytes": 4 * ELEMENTS, "rounds": rounds}
    write("digest_speed", settings, results)


if __name__ == "__main__":
    main()
