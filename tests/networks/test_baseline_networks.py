"""The baselines' networks print the numbers that the reference's print, with weights filled by a rule."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from equisynth.networks.attention_gan import AttentionDiscriminator, AttentionGenerator
from equisynth.networks.field_network import ARCHITECTURES, AffineNetwork, FieldNetwork
from equisynth.networks.patch_discriminator import PatchDiscriminator, PixelDiscriminator
from equisynth.networks.residual_generator import ResidualGenerator
from equisynth.networks.skip_generator import LEVELS, SkipGenerator


def fill(parameters: Iterable[Tensor], factor: float = 0.4) -> None:
    """Tensor k gets factor * q(j, k) with q from a linear congruence of its flat index j."""
    for k, parameter in enumerate(parameters):
        j = torch.arange(parameter.numel(), dtype=torch.int64)
        q = ((31 * j**2 + 7919 * j + 104729 * k + 17) % 10007).double() / 10007 - 0.5
        with torch.no_grad():
            parameter.copy_((factor * q).view_as(parameter))


def image(shape: tuple[int, ...], second: bool = False) -> Tensor:
    """The image X, or the second image Y: float32 values in double precision."""
    n = torch.arange(torch.Size(shape).numel(), dtype=torch.int64)
    a, b, c = (23, 409, 11) if second else (17, 611, 3)
    return (2 * ((a * n**2 + b * n + c) % 1009).float() / 1009 - 1).view(shape).double()


def check(found: Tensor, total: float, absolute: float, first: float, last: float) -> None:
    flat = found.detach().flatten()
    values = [flat.sum(), flat.abs().sum(), flat[0], flat[-1]]
    torch.testing.assert_close(
        torch.stack(values), torch.tensor([total, absolute, first, last]).double(), rtol=2e-6, atol=1e-6
    )


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_residual_generator() -> None:
    network = ResidualGenerator(1, 2, 4, blocks=3).double()
    assert count(network) == 17430
    assert count(ResidualGenerator(1, 2, 4, blocks=3, norm="batch")) == 17566
    fill(network.parameters())
    check(network(image((1, 1, 16, 20))), 150.856674, 507.826584, -0.824121, 0.187301)


def test_skip_generator_takes_odd_levels() -> None:
    network = SkipGenerator(1, 2, 4, LEVELS["unet_256"]).double()
    assert count(network) == 213146
    fill(network.parameters())
    check(network(image((1, 1, 160, 192))), -14083.243186, 19003.427319, -0.078348, -0.087189)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        network(image((1, 1, 128, 128)))


def test_patch_discriminator() -> None:
    network = PatchDiscriminator(2, 4).double()
    assert count(network) == 11453
    assert count(PatchDiscriminator(2, 4, layers=5)) == 44285
    fill(network.parameters())
    found = network(image((1, 2, 32, 40)))
    assert found.shape == (1, 1, 2, 3)
    check(found, -0.665256, 6.147078, 0.904863, -0.397118)


@pytest.mark.parametrize(("shape", "logits"), [((256, 256), (30, 30)), ((160, 192), (18, 22)), ((512, 512), (62, 62))])
def test_patch_discriminator_sizes(shape: tuple[int, int], logits: tuple[int, int]) -> None:
    assert PatchDiscriminator(1, 1)(torch.zeros(1, 1, *shape)).shape[2:] == logits


def test_pixel_discriminator() -> None:
    network = PixelDiscriminator(2, 4).double()
    assert count(network) == 61
    fill(network.parameters())
    check(network(image((1, 2, 8, 8))), -0.143478, 9.754456, 0.377510, 0.221694)


def test_field_network() -> None:
    assert count(FieldNetwork(3, ARCHITECTURES["B"])) == 1873730
    assert count(FieldNetwork(2, ARCHITECTURES["A"])) == 2058018
    network = FieldNetwork(2, ARCHITECTURES["B"]).double()
    assert count(network) == 1873442
    fill(network.parameters(), 0.1)
    pair = torch.cat([image((1, 1, 128, 192)), image((1, 1, 128, 192), second=True)], dim=1)
    check(network(pair), -247.114985, 3345.218805, -0.008941, 0.103609)
    with pytest.raises(ValueError, match="sides of at least 128"):
        network(torch.zeros(1, 2, 64, 128).double())


def test_field_network_starts_near_the_identity() -> None:
    torch.manual_seed(0)
    for kind in ("normal", "kaiming"):
        field = FieldNetwork(2, ARCHITECTURES["B"], kind)(torch.randn(1, 2, 128, 128))
        assert field.abs().max() < 1e-2


def test_affine_network() -> None:
    network = AffineNetwork(3, (64, 64))
    assert count(network) == 1242438
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 2, 3)


def generator_tensors(network: AttentionGenerator) -> list[Tensor]:
    """In the order in which the rule numbers them: mixtures and strengths take no number."""
    encoder = [layer for layer in network.encoder if isinstance(layer, nn.Conv2d)]
    down = [tensor for layer in encoder for tensor in (layer.weight_orig, layer.bias)]
    attention = [network.attention.classifier.weight_orig, *network.attention.mix.parameters()]
    linear = [*network.style.parameters(), network.scale.weight, network.shift.weight]
    blocks = [tensor for block in network.blocks for tensor in (block.conv1.weight, block.conv2.weight)]
    normed = [p for part in (network.widen, network.decoder) for n, p in part.named_parameters() if "mixture" not in n]
    widen = len([n for n, _ in network.widen.named_parameters() if "mixture" not in n])
    return [*down, *attention, *normed[:widen], *linear, *blocks, *normed[widen:]]


def set_constants(network: nn.Module) -> None:
    """Scales become 1 + value, strengths 0.5, the vectors of spectral norms constant."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(".scale"):
                parameter.add_(1)
            elif name.endswith("strength"):
                parameter.fill_(0.5)
        for name, buffer in network.named_buffers():
            if name.endswith(("weight_u", "weight_v")):
                buffer.fill_(buffer.numel() ** -0.5)


def test_attention_generator_advances_its_spectral_norms() -> None:
    network = AttentionGenerator(1, 2, (16, 32), features=4, blocks=2).double()
    assert count(network) == 22575
    assert len(list(network.parameters())) == 45
    fill(generator_tensors(network))
    set_constants(network)
    x = image((1, 1, 16, 32))
    check(network(x), 1219.725648, 1256.644444, 0.116014, -0.041842)
    check(network(x), 1221.220206, 1257.838812, 0.179048, -0.041190)


def test_attention_discriminator() -> None:
    network = AttentionDiscriminator(1, features=4).double()
    assert count(network) == 184949
    encoder = [
        tensor
        for layer in network.encoder
        if isinstance(layer, nn.Conv2d)
        for tensor in (layer.weight_orig, layer.bias)
    ]
    shared, local = network.shared[1], network.local[1]
    coarse = [
        tensor for layer in network.coarse if isinstance(layer, nn.Conv2d) for tensor in (layer.weight_orig, layer.bias)
    ]
    fill([
        *encoder, network.attention.classifier.weight_orig, *network.attention.mix.parameters(),
        shared.weight_orig, shared.bias, local.weight_orig, local.bias, network.local_head.weight_orig,
        *coarse, network.global_head.weight_orig,
    ])  # fmt: skip
    set_constants(network)
    logits = network(image((1, 1, 64, 64)))
    assert logits.local.shape == (1, 1, 6, 6)
    check(logits.local, -3.199366, 4.102696, -0.122699, -0.049036)
    assert logits.large.item() == pytest.approx(0.159477, abs=1e-6)
    assert logits.attention.item() == pytest.approx(0.055127, abs=1e-6)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: ResidualGenerator(1, 1), 11365633),
        (lambda: ResidualGenerator(1, 1, blocks=3), 4284673),
        (lambda: SkipGenerator(1, 1, levels=LEVELS["unet_256"]), 54403457),
        (lambda: SkipGenerator(1, 1, levels=LEVELS["unet_512"]), 66987393),
        (lambda: PatchDiscriminator(1), 2762689),
        (lambda: PatchDiscriminator(2), 2763713),
        (lambda: AttentionGenerator(1, 1, (256, 256)), 277814402),
        (lambda: AttentionDiscriminator(1), 11722657),
    ],
    ids=["resnet_9blocks", "resnet_3blocks", "unet_256", "unet_512", "patch_1", "patch_2", "reggan_g", "reggan_d"],
)
def test_full_sizes(build: object, expected: int) -> None:
    with torch.device("meta"):
        assert count(build()) == expected  # type: ignore[operator]
