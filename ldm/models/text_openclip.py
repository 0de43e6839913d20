"""The text encoder of SD 2.x: OpenCLIP's text tower (arXiv 2103.00020, section 2.4; arXiv 2212.07143).

Sizes come from open_clip's descriptions; nothing is downloaded, because every Stable Diffusion checkpoint
contains these weights. Tokens are padded with 0 to the context length. Layer "penultimate" leaves out the
last block but applies the final layer norm; SD 2.x was trained with it.
"""

import math
from functools import cached_property

import torch
from torch import Tensor, nn

from ldm.clip_files import architecture
from ldm.errors import ConfigError, InputError
from ldm.models.clip_blocks import LayerNorm, TextSizes, Transformer
from ldm.models.text_clip import FrozenTextEmbedder, causal_mask, require_blocks
from ldm.prompts.tokenizer import Tokenizer

LAYERS = {"last": 0, "penultimate": 1}     # name -> number of last blocks that are left out


class TextTower(nn.Module):
    """OpenCLIP's text tower, with the parameter names of a CLIP model without its image tower."""

    def __init__(self, embed_dim: int, sizes: TextSizes, quick_gelu: bool = False) -> None:
        super().__init__()
        self.context_length = sizes.context_length
        self.positional_embedding = nn.Parameter(torch.empty(sizes.context_length, sizes.width))
        self.text_projection = nn.Parameter(torch.empty(sizes.width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))       # only training uses it
        self.token_embedding = nn.Embedding(sizes.vocab_size, sizes.width)
        self.transformer = Transformer(sizes, quick_gelu)
        self.ln_final = LayerNorm(sizes.width)
        self._initialise(sizes)

    def _initialise(self, sizes: TextSizes) -> None:
        """Initialise the weights as CLIP does, with GPT-2's scaling of the residual branches."""
        std = sizes.width**-0.5
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=std)
        for block in self.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=std)
            nn.init.normal_(block.mlp.c_fc.weight, std=std / math.sqrt(2))
            for added in (block.attn.out_proj, block.mlp.c_proj):
                nn.init.normal_(added.weight, std=std / math.sqrt(2 * sizes.layers))

    def forward(self, tokens: Tensor, skip: int = 0, hidden: Tensor | None = None) -> Tensor:
        """Encode token ids (b, n) to (b, n, width), leaving out the last `skip` blocks.

        Other tokens do not attend to tokens where `hidden` (b, n) is True.
        """
        x = self.token_embedding(tokens) + self.positional_embedding                    # (b, n, width)
        mask = None if hidden is None else causal_mask(hidden)[:, None]
        return self.ln_final(self.transformer(x, mask, causal=True, skip=skip))


class FrozenOpenCLIPEmbedder(FrozenTextEmbedder):
    """Encode prompts to (b, context_length, width) with an OpenCLIP text tower.

    Args:
        arch: an open_clip architecture name, or the path of a JSON description.
        version: name of the pretrained weights; kept for information, never downloaded.
        freeze: disable gradients.
        layer: "last" or "penultimate".
        max_length: tokens per prompt; if given, it must be the tower's context length.
        device: device of the module; None leaves it where it was built.
        bpe_path: merges file of the tokenizer; None: CLIP's own, from open_clip.

    Raises:
        ConfigError: arch or layer is unknown, or max_length is wrong.
    """

    def __init__(
        self,
        arch: str = "ViT-H-14",
        version: str | None = "laion2b_s32b_b79k",
        device: str | None = None,
        max_length: int | None = None,
        freeze: bool = True,
        layer: str = "last",
        bpe_path: str | None = None,
    ) -> None:
        super().__init__()
        if layer not in LAYERS:
            raise ConfigError(f"FrozenOpenCLIPEmbedder: layer {layer!r}; expected one of {', '.join(LAYERS)}")
        config = architecture(arch)
        sizes = TextSizes.read(config, "text_cfg")
        self.model = TextTower(config["embed_dim"], sizes, config.get("quick_gelu", False))
        if max_length not in (None, self.model.context_length):
            raise ConfigError(
                f"FrozenOpenCLIPEmbedder: max_length {max_length}; "
                f"the context length of {arch} is {self.model.context_length}"
            )
        self.arch = arch
        self.version = version
        self.layer = layer
        self.max_length = self.model.context_length
        self.bpe_path = bpe_path
        if freeze:
            self.freeze()
        self.place(device)

    def unused_parameters(self) -> list[str]:
        """Name the parameters of the blocks that `layer` leaves out, which some layouts do not store."""
        blocks = self.model.transformer.resblocks
        unused = range(len(blocks) - LAYERS[self.layer], len(blocks))
        names = [f"{i}.{name}" for i in unused for name, _ in blocks[i].named_parameters()]
        return [f"model.transformer.resblocks.{name}" for name in names]

    def input_device(self) -> torch.device:
        return self.model.positional_embedding.device

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.bpe_path, self.max_length)

    def padding(self) -> int:
        return 0

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Return ids (b, context_length): start, text, end, zeros; a long text is cut before the end."""
        return self.tokenizer(list(prompts), self.max_length)

    def check_clip_skip(self, clip_skip: int) -> None:
        """Raise InputError if there are not that many blocks, or if the weights file lacked the block."""
        blocks = self.model.transformer.resblocks
        require_blocks(clip_skip, len(blocks))
        if clip_skip <= LAYERS[self.layer] and not blocks[-clip_skip].ln_1.weight.any():    # see loading.py
            raise InputError(
                f"clip skip {clip_skip} needs a block of the text encoder that this weights file does not "
                f"contain; expected {LAYERS[self.layer] + 1} or more"
            )

    def encode_tokens(
        self, tokens: Tensor, clip_skip: int | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        """Encode ids (b, n) to (b, n, width).

        Args:
            clip_skip: leave out the last (clip_skip - 1) blocks, but not the final layer norm: 1 is the last
                block, 2 the penultimate; None is the layer of the configuration.
            hidden: (b, n) True for tokens that others do not attend to.
        """
        skip = LAYERS[self.layer] if clip_skip is None else clip_skip - 1
        return self.model(tokens, skip=skip, hidden=hidden)
