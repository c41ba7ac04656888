"""Faults that lie in the data at hand: another domain, or pixels on another scale."""

from __future__ import annotations

from planted_controls import SAMPLES
from planted_faults import ALL, Case, planted
from planted_images import Look, blurred, flat_and_noisy, tinted
from planted_nets import Batch, Net, Prepare, raw_resnet20

# Ever further away.
LOOKS: dict[str, tuple[Look, ...]] = {
    "flat and noisy": tuple(flat_and_noisy(*by) for by in ((0.75, 0.06), (0.55, 0.12), (0.35, 0.2), (0.2, 0.3))),
    "blurred": tuple(blurred(times) for times in (1, 2, 4, 8)),
    "tinted": tuple(tinted(by) for by in (0.15, 0.25, 0.4)),
}


def _training_data(net: Net, seed: int) -> list[Batch]:
    return net.batches(seed=500 + seed, samples=SAMPLES)


def _shifted(net: Net, kind: str, strength: int, seed: int) -> list[Batch]:
    # A filter of three pixels is a lot to digits of eight; photographs and sketches together have so wide a spread
    # that a little noise is lost in it.
    further = net.train.pixels.shape[-1] > 8 if kind == "blurred" else kind != "tinted" and net.name == "siamese"
    look = LOOKS[kind][strength - 1 + further]
    return net.batches("held_out", seed=500 + seed, samples=SAMPLES, look=look)


def _plant_domain_shifts() -> None:
    for kind in LOOKS:
        # Blurred photographs and sketches of 32 pixels lie within what their few held-out images scatter by anyway.
        nets = tuple(net for net in ALL if (kind, net) != ("blurred", "siamese"))

        @planted("domain-shift", kind, nets)
        def alone(net: Net, strength: int, seed: int, kind: str = kind) -> Case:
            return Case(net.fresh(), _shifted(net, kind, strength, seed), proof="data")

        @planted("domain-shift", f"{kind}, training data given", nets)
        def compared(net: Net, strength: int, seed: int, kind: str = kind) -> Case:
            train = _training_data(net, seed)
            return Case(net.fresh(), _shifted(net, kind, strength, seed), {"train_loader": train}, "data")


_plant_domain_shifts()


@planted("domain-shift", "JPEG copy", nets=("resnet20",), strengths=(1,))
def jpeg_copy(net: Net, _strength: int, seed: int) -> Case:
    """The checkpoint on compressed images: 81 % in place of 91.8 %, and 79.5 % when it is recalibrated."""
    return Case(raw_resnet20(), net.batches("held_out", seed=500 + seed), proof="data", never="recalibrate")


def _scaled(net: Net, strength: int) -> Prepare:
    """What goes wrong between the file and the model.

    1: no normalization (colour: -1..1 in place of mean and standard deviation, of which the digits are not far);
    2: colour: no normalization, digits: 0..16 normalized as if they were 0..1; 3: 0..255 normalized as if 0..1.
    """
    colour = net.train.pixels.shape[1] > 1
    if strength == 3:
        return lambda pixels: net.normalized(255 * pixels)
    if strength == 2 and not colour:
        return lambda pixels: net.normalized(16 * pixels)
    if strength == 1 and colour:
        return lambda pixels: 2 * pixels - 1
    return lambda pixels: pixels


@planted("wrong-input-scale", "normalization")
def normalization(net: Net, strength: int, seed: int) -> Case:
    loader = net.batches("held_out", seed=500 + seed, samples=SAMPLES, prepare=_scaled(net, strength))
    return Case(net.fresh(), loader, proof="data")


@planted("wrong-input-scale", "normalization, training data given")
def normalization_compared(net: Net, strength: int, seed: int) -> Case:
    loader = net.batches("held_out", seed=500 + seed, samples=SAMPLES, prepare=_scaled(net, strength))
    return Case(net.fresh(), loader, {"train_loader": _training_data(net, seed)}, "data")


@planted("wrong-input-scale", "factor")
def factor(net: Net, strength: int, seed: int) -> Case:
    """What the model is given, times 2 (1), over 255 (2), or times 255 (3)."""
    by = {1: 2.0, 2: 1 / 255, 3: 255.0}[strength]
    loader = net.batches(
        "held_out", seed=500 + seed, samples=SAMPLES, prepare=lambda pixels: by * net.normalized(pixels)
    )
    return Case(net.fresh(), loader, proof="data")
