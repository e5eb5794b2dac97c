"""Plain vision transformers with a class token, built from torch alone.

The architecture is that of Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, with pre-normalised blocks,
in the two variants that RALI's models use: CLIP's (a norm before the blocks, a projection behind them) with the
names of open_clip's `VisionTransformer`, and DINOv2's (biased patches, layer scale) with those of timm's. open_clip and
timm take longer to import than torch itself, which is most of the time to a first score.

If only the class token's embedding is needed, the last block computes nothing for the other tokens. Otherwise the
arithmetic is the same: `tests/test_vision_transformer.py` compares values and gradients.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import attention
from .lazy import renamed, renamed_attribute

__getattr__ = renamed(__name__, {"ClipTower": "ClipEncoder", "DinoTower": "DinoEncoder", "Shape": "ViTConfig"})

PatchPattern = Literal["all", "checkerboard"]
"""Which patches the encoder sees: half of a fine grid costs little more than all of a coarse one."""


CPU_PASS_BYTES = 24 * 2**20
"""Above 32 MiB the C library allocates and frees system memory for every intermediate result."""


@dataclass(frozen=True)
class ViTConfig:
    """The configuration of a plain vision transformer.

    Attributes:
        image_size: Side of the square input in pixels.
        patch: Side of a patch in pixels.
        width: Length of a token.
        layers: Number of blocks.
        heads: Attention heads of a block.
        hidden: Width between the two layers of a block's MLP.
        pattern: Which patches the blocks see.
        intermediate_block: The class token after so many blocks is appended to the embedding; 0 for none.
    """

    image_size: int
    patch: int
    width: int
    layers: int
    heads: int
    hidden: int
    pattern: PatchPattern = "all"
    intermediate_block: int = 0

    def __post_init__(self) -> None:
        numbers = (self.image_size, self.patch, self.width, self.layers, self.heads, self.hidden)
        if not all(type(number) is int and number > 0 for number in numbers):
            raise ValueError(f"expected positive whole numbers, got {self}")
        if self.image_size < self.patch:
            raise ValueError(f"an image of {self.image_size} pixels has no patch of {self.patch}")
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} cannot be shared by {self.heads} heads")
        if type(self.intermediate_block) is not int or not 0 <= self.intermediate_block < self.layers:
            raise ValueError(
                f"intermediate_block must lie in 0..{self.layers - 1} for {self.layers} blocks, "
                f"got {self.intermediate_block!r}"
            )
        if self.pattern not in get_args(PatchPattern):
            raise ValueError(f"patch_pattern must be one of {', '.join(get_args(PatchPattern))}, got {self.pattern!r}")
        grid = self.image_size // self.patch
        # An even one would not be its own mirror image; one patch has no second to leave out.
        if self.pattern == "checkerboard" and (grid % 2 == 0 or grid == 1):
            raise ValueError(
                f"a checkerboard needs an odd number of patches a side, got {grid}: image_size {self.image_size} and "
                f"patches of {self.patch} pixels; the smallest is 3"
            )

    @property
    def tokens(self) -> int:
        """Patches and the class token; pixels at the right and lower edge that do not fill a patch are left out."""
        return (self.image_size // self.patch) ** 2 + 1

    @property
    def seen_tokens(self) -> int:
        """Those of them that the blocks see."""
        return self.tokens if self.pattern == "all" else self.tokens // 2 + 1

    @property
    def embed_dim(self) -> int:
        """Dimension of the embedding, before any projection."""
        return self.width * (2 if self.intermediate_block else 1)

    inputs_per_pass = renamed_attribute("inputs_per_pass", "max_batch")

    def max_batch(self, element_bytes: int) -> int:
        """The number of inputs per forward pass that suits a CPU: intermediate results stay within `CPU_PASS_BYTES`.

        Args:
            element_bytes: Size of a number of the encoder's dtype.
        """
        return max(1, CPU_PASS_BYTES // (self.seen_tokens * max(self.hidden, 3 * self.width) * element_bytes))


DINOV2 = {
    "vit_small_patch14_dinov2": (384, 12, 6),
    "vit_base_patch14_dinov2": (768, 12, 12),
    "vit_large_patch14_dinov2": (1024, 24, 16),
}
"""timm's names of DINOv2's encoders without registers: width, layers, heads. The giant model has a different MLP."""

CLIP_SETTINGS = frozenset({"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size"})
DINOV2_SETTINGS = {
    "timm_pool": "token", "timm_proj": "none", "timm_model_pretrained": False, "timm_proj_bias": False,
    "timm_drop": 0.0, "timm_drop_path": None, "patch_dropout": 0.0,
}  # fmt: skip
"""Settings that are accepted, with their only supported value."""
OWN_SETTINGS = frozenset({"timm_model_name", "image_size", "patch_pattern", "intermediate_block"})


def build_plain(embed_dim: int, settings: dict[str, Any], *, quick_gelu: bool) -> nn.Module | None:
    """The encoder of an open_clip configuration if it is a plain one; None for any other, which open_clip builds.

    Args:
        embed_dim: Dimension D of the embedding.
        settings: open_clip's `vision_cfg`.
        quick_gelu: Activation of OpenAI's CLIP.

    Raises:
        ValueError: A plain encoder, of an impossible shape.
    """
    name = settings.get("timm_model_name")
    if name is None:
        return _build_clip(embed_dim, settings, quick_gelu=quick_gelu)
    others = {key: value for key, value in settings.items() if key not in OWN_SETTINGS}
    fixed = {"timm_pool", "timm_proj"} <= others.keys()
    if name not in DINOV2 or not fixed or any(DINOV2_SETTINGS.get(key, others) != others[key] for key in others):
        return None
    width, layers, heads = DINOV2[name]
    size, pattern = settings.get("image_size", 224), settings.get("patch_pattern", "all")
    shape = ViTConfig(size, 14, width, layers, heads, 4 * width, pattern, settings.get("intermediate_block", 0))
    if embed_dim != shape.embed_dim:
        raise ValueError(f"this encoder's embedding has {shape.embed_dim} dimensions, got embed_dim {embed_dim}")
    return DinoEncoder(shape)


def _build_clip(embed_dim: int, settings: dict[str, Any], *, quick_gelu: bool) -> nn.Module | None:
    layers = settings.get("layers", 12)
    if settings.keys() - CLIP_SETTINGS or isinstance(layers, tuple | list):
        return None
    width = settings.get("width", 768)
    shape = ViTConfig(
        settings.get("image_size", 224),
        settings.get("patch_size", 16),
        width,
        layers,
        width // settings.get("head_width", 64),
        int(width * settings.get("mlp_ratio", 4.0)),
    )
    return ClipEncoder(shape, embed_dim, quick_gelu=quick_gelu)


def draw(parameter: nn.Parameter, deviation: float) -> None:
    """Fill a parameter with normally distributed numbers; does nothing on the "meta" device,
    where torch would import its whole compiler.
    """
    if not parameter.is_meta:
        nn.init.normal_(parameter, std=deviation)


def attend(tokens: Tensor, project: Any, heads: int, *, class_token_only: bool) -> Tensor:
    """Multi-head self-attention without the output projection.

    Args:
        tokens: (B, N, W).
        project: Function from (tokens, part) to the projected tokens; part is "qkv" (B, N, 3 W), "q" or "kv".
        heads: How many heads share W.
        class_token_only: Only the first token is a query.

    Returns:
        (B, N, W), with `class_token_only` (B, 1, W).
    """
    if class_token_only:
        parts = [project(tokens[:, :1], "q"), *project(tokens, "kv").chunk(2, dim=-1)]
    else:
        parts = list(project(tokens, "qkv").chunk(3, dim=-1))
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
    attended = attention(query, key, value)
    return attended.transpose(1, 2).flatten(2)


def _rows(part: str, width: int) -> slice:
    """The rows of a part in the stacked query, key and value weights."""
    return {"qkv": slice(None), "q": slice(width), "kv": slice(width, None)}[part]


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), as OpenAI's CLIP has it."""

    def forward(self, values: Tensor) -> Tensor:
        """Any shape."""
        scaled = 1.702 * values
        return functional.silu(scaled, inplace=not torch.is_grad_enabled()) * (1 / 1.702)


class ClipAttention(nn.Module):
    """Self-attention with the parameter names of `nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: Tensor, *, class_token_only: bool = False) -> Tensor:
        """(B, N, W) to (B, N, W), with `class_token_only` to (B, 1, W)."""

        def project(part_of: Tensor, part: str) -> Tensor:
            rows = _rows(part, tokens.shape[-1])
            return functional.linear(part_of, self.in_proj_weight[rows], self.in_proj_bias[rows])

        attended: Tensor = self.out_proj(attend(tokens, project, self.heads, class_token_only=class_token_only))
        return attended


class ClipBlock(nn.Module):
    """Pre-normalised attention and MLP with open_clip's names."""

    def __init__(self, shape: ViTConfig, *, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.width)
        self.attn = ClipAttention(shape.width, shape.heads)
        self.ln_2 = nn.LayerNorm(shape.width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(shape.width, shape.hidden),
                gelu=QuickGELU() if quick_gelu else nn.GELU(),
                c_proj=nn.Linear(shape.hidden, shape.width),
            )
        )

    def forward(self, tokens: Tensor, *, class_token_only: bool = False) -> Tensor:
        """(B, N, W) to (B, N, W), with `class_token_only` to (B, 1, W)."""
        kept = tokens[:, :1] if class_token_only else tokens
        kept = kept + self.attn(self.ln_1(tokens), class_token_only=class_token_only)
        result: Tensor = kept + self.mlp(self.ln_2(kept))
        return result


class _Transformer(nn.Module):
    """Holds the blocks under open_clip's name."""

    def __init__(self, blocks: list[ClipBlock]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(blocks)


class ClipEncoder(nn.Module):
    """CLIP's vision transformer with open_clip's names.

    Args:
        shape: Its shape.
        embed_dim: Dimension D of the embedding.
        quick_gelu: Activation of OpenAI's CLIP.

    Attributes:
        output_tokens: Makes `forward` return the pair (embedding, (B, N - 1, W) patch tokens after the last norm).
    """

    pool_type = "tok"
    attn_pool = None

    def __init__(self, shape: ViTConfig, embed_dim: int, *, quick_gelu: bool) -> None:
        super().__init__()
        self.shape = shape
        self.output_tokens = False
        self.conv1 = nn.Conv2d(3, shape.width, shape.patch, stride=shape.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(shape.width))
        self.positional_embedding = nn.Parameter(torch.empty(shape.tokens, shape.width))
        for parameter in (self.class_embedding, self.positional_embedding):
            draw(parameter, shape.width**-0.5)
        self.ln_pre = nn.LayerNorm(shape.width)
        self.transformer = _Transformer([ClipBlock(shape, quick_gelu=quick_gelu) for _ in range(shape.layers)])
        self.ln_post = nn.LayerNorm(shape.width)
        self.proj = nn.Parameter(torch.empty(shape.width, embed_dim))
        draw(self.proj, shape.width**-0.5)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002 - timm's signature
        """The block of each parameter, in timm's format, for layer-wise learning rates."""
        return {
            "stem": r"^(?:class_embedding|positional_embedding|conv1|ln_pre)",
            "blocks": [(r"^transformer\.resblocks\.(\d+)", None), (r"^(?:ln_post|proj)", (99999,))],
        }

    def forward(self, inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(B, 3, S, S) normalised input to (B, D) embeddings, un-normalised."""
        return self.forward_rest(self.forward_first(inputs, 0), 0)

    def forward_first(self, inputs: Tensor, count: int) -> Tensor:
        """(B, 3, S, S) normalised input to (B, N, W) tokens after the first `count` blocks; class token first."""
        patches = self.conv1(inputs).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(inputs), 1, -1)
        tokens: Tensor = self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding)
        for block in self.transformer.resblocks[:count]:
            tokens = block(tokens)
        return tokens

    def forward_rest(self, tokens: Tensor, count: int) -> Tensor | tuple[Tensor, Tensor]:
        """Those tokens, or the class token and some of them, to what `forward` gives."""
        blocks = self.transformer.resblocks
        for block in blocks[count:-1]:
            tokens = block(tokens)
        tokens = self.ln_post(blocks[-1](tokens, class_token_only=not self.output_tokens))
        embedding: Tensor = tokens[:, 0] @ self.proj
        return (embedding, tokens[:, 1:]) if self.output_tokens else embedding


class DinoAttention(nn.Module):
    """Self-attention with timm's names."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, *, class_token_only: bool = False) -> Tensor:
        """(B, N, W) to (B, N, W), with `class_token_only` to (B, 1, W)."""

        def project(part_of: Tensor, part: str) -> Tensor:
            rows = _rows(part, tokens.shape[-1])
            return functional.linear(part_of, self.qkv.weight[rows], self.qkv.bias[rows])

        attended: Tensor = self.proj(attend(tokens, project, self.num_heads, class_token_only=class_token_only))
        return attended


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, values: Tensor) -> Tensor:
        """(..., W) to (..., W)."""
        return values * self.gamma


class DinoBlock(nn.Module):
    """Pre-normalised attention and MLP with layer scale and timm's names."""

    def __init__(self, shape: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=1e-6)
        self.attn = DinoAttention(shape.width, shape.heads)
        self.ls1 = LayerScale(shape.width)
        self.norm2 = nn.LayerNorm(shape.width, eps=1e-6)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(shape.width, shape.hidden), act=nn.GELU(), fc2=nn.Linear(shape.hidden, shape.width)
            )
        )
        self.ls2 = LayerScale(shape.width)

    def forward(self, tokens: Tensor, *, class_token_only: bool = False) -> Tensor:
        """(B, N, W) to (B, N, W), with `class_token_only` to (B, 1, W)."""
        kept = tokens[:, :1] if class_token_only else tokens
        # One pass over memory for the factor and the sum.
        kept = torch.addcmul(kept, self.attn(self.norm1(tokens), class_token_only=class_token_only), self.ls1.gamma)
        return torch.addcmul(kept, self.mlp(self.norm2(kept)), self.ls2.gamma)


class PatchEmbedding(nn.Module):
    """Patches to tokens, with timm's name of the convolution."""

    def __init__(self, shape: ViTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, shape.width, shape.patch, stride=shape.patch)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, N - 1, W)."""
        tokens: Tensor = self.proj(inputs).flatten(2).transpose(1, 2)
        return tokens

    def embed_checkerboard(self, inputs: Tensor) -> Tensor:
        """Every second patch only, in the order of `split_checkerboard`; two convolutions with twice the stride."""
        side, stride = self.proj.kernel_size[0], [2 * step for step in self.proj.kernel_size]
        parts = [
            functional.conv2d(part, self.proj.weight, self.proj.bias, stride=stride).flatten(2)
            for part in (inputs, inputs[:, :, side:, side:])
        ]
        return torch.cat(parts, dim=2).transpose(1, 2)


def split_checkerboard(patches: Tensor) -> Tensor:
    """(B, g * g, W) of an odd g to every second: those of even rows, then those of odd rows."""
    side = math.isqrt(patches.shape[1])
    grid = patches.unflatten(1, (side, side))
    return torch.cat([grid[:, ::2, ::2].flatten(1, 2), grid[:, 1::2, 1::2].flatten(1, 2)], dim=1)


class DinoTrunk(nn.Module):
    """DINOv2's vision transformer with timm's names of parameters and methods."""

    global_pool = "token"
    num_prefix_tokens = 1

    def __init__(self, shape: ViTConfig) -> None:
        super().__init__()
        self.pattern, self.intermediate_block = shape.pattern, shape.intermediate_block
        self.cls_token = nn.Parameter(torch.empty(1, 1, shape.width))
        self.pos_embed = nn.Parameter(torch.empty(1, shape.tokens, shape.width))
        self.patch_embed = PatchEmbedding(shape)
        self.blocks = nn.Sequential(*(DinoBlock(shape) for _ in range(shape.layers)))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        draw(self.cls_token, 1e-6)
        draw(self.pos_embed, 0.02)

    def _pos_embed(self, patches: Tensor) -> Tensor:
        return torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self.pos_embed

    keep_own = renamed_attribute("keep_own", "select_patches")

    def select_patches(self, tokens: Tensor) -> Tensor:
        """(B, N, W) tokens with the class token first to the visible ones."""
        if self.pattern == "all":
            return tokens
        return torch.cat([tokens[:, :1], split_checkerboard(tokens[:, 1:])], dim=1)

    def _embed_visible(self, inputs: Tensor) -> Tensor:
        if self.pattern == "all":
            return self._pos_embed(self.patch_embed(inputs))
        first = self.cls_token.expand(len(inputs), -1, -1)
        patches = self.patch_embed.embed_checkerboard(inputs)
        return torch.cat([first, patches], dim=1) + self.select_patches(self.pos_embed)

    def forward_features(self, inputs: Tensor) -> Tensor:
        """(B, 3, S, S) normalised input to (B, N, D) embeddings of the class token and of all patches."""
        between = self.blocks[: self.intermediate_block](self._pos_embed(self.patch_embed(inputs)))
        tokens: Tensor = self.norm(self.blocks[self.intermediate_block :](between))
        return torch.cat([tokens, between], dim=-1) if self.intermediate_block else tokens

    def forward_head(self, tokens: Tensor) -> Tensor:
        """(B, N, D) to that of the class token, (B, D)."""
        return tokens[:, 0]

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, 3, S, S) normalised input to (B, D) embeddings."""
        return self.forward_rest(self.forward_first(inputs, 0), 0)

    def forward_first(self, inputs: Tensor, count: int) -> Tensor:
        """(B, 3, S, S) normalised input to (B, N, W) tokens after the first `count` blocks; class token first."""
        tokens = self._embed_visible(inputs)
        for block in self.blocks[:count]:
            tokens = block(tokens)
        return tokens

    def forward_rest(self, tokens: Tensor, count: int) -> Tensor:
        """Those tokens, or the class token and some of them, to (B, D) embeddings; at most `intermediate_block` blocks,
        if there is one, may have been run."""
        between = tokens[:, :1]
        for number, block in enumerate(self.blocks[count:-1], start=count + 1):
            tokens = block(tokens)
            if number == self.intermediate_block:
                between = tokens[:, :1]
        last = self.norm(cast(DinoBlock, self.blocks[-1])(tokens, class_token_only=True))
        return self.forward_head(torch.cat([last, between], dim=-1) if self.intermediate_block else last)


class DinoEncoder(nn.Module):
    """`DinoTrunk` under open_clip's names.

    Args:
        shape: Its shape.
    """

    def __init__(self, shape: ViTConfig) -> None:
        super().__init__()
        self.shape = shape
        self.trunk = DinoTrunk(shape)
        self.head = nn.Sequential()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002 - timm's signature
        """The block of each parameter, in timm's format, for layer-wise learning rates."""
        return {
            "stem": r"^trunk\.(?:cls_token|pos_embed|patch_embed)",
            "blocks": [(r"^trunk\.blocks\.(\d+)", None), (r"^trunk\.norm\.", (99999,))],
        }

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, 3, S, S) normalised input to (B, D) embeddings, un-normalised."""
        embedding: Tensor = self.head(self.trunk(inputs))
        return embedding

    def forward_first(self, inputs: Tensor, count: int) -> Tensor:
        """See `DinoTrunk.forward_first`."""
        return self.trunk.forward_first(inputs, count)

    def forward_rest(self, tokens: Tensor, count: int) -> Tensor:
        """See `DinoTrunk.forward_rest`."""
        embedding: Tensor = self.head(self.trunk.forward_rest(tokens, count))
        return embedding
