"""The text encoder of SD 2.x: OpenCLIP's text tower (arXiv 2103.00020, section 2.4; arXiv 2212.07143).

The tower's blocks come from open_clip; nothing is downloaded, because every Stable Diffusion checkpoint holds
these weights. Tokens are padded with 0 to the context length. Layer "penultimate" leaves out the last block
and still applies the final layer norm; that is what SD 2.x was trained with.
"""

import difflib
import json
from functools import cached_property
from pathlib import Path

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.errors import ConfigError, InputError
from ldm.models.text_clip import causal_mask, require_blocks
from ldm.prompts.chunks import Vocabulary

LAYERS = {"last": 0, "penultimate": 1}     # name -> how many of the last blocks are left out


class TextTower(nn.Module):
    """OpenCLIP's text tower with the parameter names of a CLIP model whose image tower was deleted."""

    def __init__(self, embed_dim: int, text_cfg: dict, quick_gelu: bool = False) -> None:
        super().__init__()
        text = open_clip.model._build_text_tower(embed_dim, text_cfg, quick_gelu)
        self.positional_embedding = text.positional_embedding
        self.text_projection = text.text_projection
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))      # ln(1/0.07); only training uses it
        self.token_embedding = text.token_embedding
        self.transformer = text.transformer
        self.ln_final = text.ln_final
        self.context_length: int = text.context_length
        self.num_heads: int = text.transformer.resblocks[0].attn.num_heads
        self.grad_checkpointing = False

    def forward(self, tokens: Tensor, skip: int = 0, hidden: Tensor | None = None) -> Tensor:
        """Encode token ids (b, n) to (b, n, width), leaving out the last `skip` blocks.

        No other token looks at those where `hidden` (b, n) is true.
        """
        x = self.token_embedding(tokens) + self.positional_embedding                    # (b, n, width)
        length = tokens.shape[1]
        mask = torch.full((length, length), float("-inf"), device=x.device, dtype=x.dtype).triu_(1)
        if hidden is not None:
            mask = torch.zeros_like(mask).masked_fill(~causal_mask(hidden), float("-inf"))
            mask = mask.repeat_interleave(self.num_heads, dim=0)                        # (b heads, n, n)
        batch_first = self.transformer.batch_first
        x = x if batch_first else x.transpose(0, 1)                             # what the blocks expect
        for block in self.transformer.resblocks[: len(self.transformer.resblocks) - skip]:
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, attn_mask=mask.to(x.dtype), use_reentrant=False)
            else:
                x = block(x, attn_mask=mask.to(x.dtype))
        x = x if batch_first else x.transpose(0, 1)
        return self.ln_final(x)


class FrozenOpenCLIPEmbedder(nn.Module):
    """Prompts -> (b, context_length, width), by an OpenCLIP text tower.

    Args:
        arch: an open_clip architecture name, or the path of its JSON description.
        version: name of the published weights; kept for information, never downloaded.
        freeze: switch off gradients.
        layer: "last" or "penultimate".
        max_length: tokens a prompt; must be the tower's own context length when given.
        device: where to put the module; None leaves it where it was built.
        bpe_path: merges file of the tokenizer; None: CLIP's own, as open_clip ships it.

    Raises:
        ConfigError: an unknown arch, layer or length.
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
        self.model = TextTower(config["embed_dim"], config["text_cfg"], config.get("quick_gelu", False))
        if max_length not in (None, self.model.context_length):
            raise ConfigError(
                f"FrozenOpenCLIPEmbedder: max_length {max_length}; "
                f"{arch} has {self.model.context_length} tokens"
            )
        self.arch = arch
        self.version = version
        self.layer = layer
        self.bpe_path = bpe_path
        if freeze:
            self.freeze()
        if device is not None and not next(self.parameters()).is_meta:      # else loading decides
            self.to(device)

    def freeze(self) -> None:
        """Put the tower into evaluation mode and switch off its gradients."""
        self.model = self.model.eval()
        self.requires_grad_(False)

    def unused_parameters(self) -> list[str]:
        """Name the parameters of the blocks that `layer` leaves out; some layouts do not store them."""
        blocks = self.model.transformer.resblocks
        unused = range(len(blocks) - LAYERS[self.layer], len(blocks))
        names = [f"{i}.{name}" for i in unused for name, _ in blocks[i].named_parameters()]
        return [f"model.transformer.resblocks.{name}" for name in names]

    @cached_property
    def tokenizer(self) -> SimpleTokenizer:
        options = {} if self.bpe_path is None else {"bpe_path": self.bpe_path}
        return SimpleTokenizer(context_length=self.model.context_length, **options)

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Return ids (b, context_length): start, text, end, then zeros; a long text is cut before the end."""
        return self.tokenizer(list(prompts), self.model.context_length)

    def check_clip_skip(self, clip_skip: int) -> None:
        """Raise InputError for more than the blocks, or for a block that the weights file lacked."""
        blocks = self.model.transformer.resblocks
        require_blocks(clip_skip, len(blocks))
        if clip_skip <= LAYERS[self.layer] and not blocks[-clip_skip].ln_1.weight.any():    # see loading.py
            raise InputError(
                f"clip skip {clip_skip} takes a block of the text encoder that this weights file lacks; "
                f"expected {LAYERS[self.layer] + 1} or more"
            )

    def vocabulary(self) -> Vocabulary:
        """Return what cutting prompts into chunks has to know; padding is 0."""
        tokenizer = self.tokenizer
        return Vocabulary(
            tokenizer.encode,
            tokenizer.sot_token_id,
            tokenizer.eot_token_id,
            pad=0,
            context_length=self.model.context_length,
        )

    def encode_tokens(
        self, tokens: Tensor, clip_skip: int | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        """Encode ids (b, n) to (b, n, width).

        Args:
            clip_skip: leave out the last (clip_skip - 1) blocks, never the final layer norm: 1 is the last
                block, 2 the penultimate; None is the layer of the configuration.
            hidden: (b, n) true where no other token may look.
        """
        skip = LAYERS[self.layer] if clip_skip is None else clip_skip - 1
        return self.model(tokens, skip=skip, hidden=hidden)

    def forward(self, prompts: list[str] | str) -> Tensor:
        """Encode prompts to (b, context_length, width)."""
        prompts = [prompts] if isinstance(prompts, str) else prompts
        return self.encode_tokens(self.tokenize(prompts).to(self.model.positional_embedding.device))

    def encode(self, prompts: list[str] | str) -> Tensor:
        """Do what calling the module does; third-party code uses this name."""
        return self(prompts)


def architecture(arch: str) -> dict:
    """Return open_clip's description of `arch`: a known name, or the path of a JSON file.

    Raises:
        ConfigError: neither.
    """
    if arch.endswith(".json"):
        try:
            return json.loads(Path(arch).read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"architecture file {arch}: {error}") from error
    config = open_clip.get_model_config(arch)
    if config is None:
        near = difflib.get_close_matches(arch, open_clip.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(
            f"arch {arch!r} is not known to open_clip, "
            f"and there is no {arch}.json beside the configuration{hint}"
        )
    return config
