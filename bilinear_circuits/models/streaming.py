"""A Llama-type model read from its safetensors files block by block: never more than one block of it is in memory."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bilinear_circuits.models.host import Host, LlamaHost
from bilinear_circuits.models.running import attention_window, hooked

KINDS = ("llama", "mistral", "qwen2", "qwen3")
_STORIES_PER_BATCH = 8
_TOKENS_PER_BATCH = 2048


class StreamedModel:
    """The blocks of a model, one after the other, in float32.

    Attributes:
        config: Its configuration.
        folder: Where it lies.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        """Find the weights of a folder; none are read yet.

        Args:
            folder: A Hugging Face folder with safetensors files.
            device: Where blocks are computed.

        Raises:
            ValueError: If the model is of another kind, or has no safetensors files.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        self.config = AutoConfig.from_pretrained(folder)
        if self.config.model_type not in KINDS:
            raise ValueError(f"model must be a {', '.join(KINDS)} to be streamed, got {self.config.model_type!r}.")
        self.folder = Path(folder)
        self._device, self._files = torch.device(device), tensor_files(Path(folder))
        with torch.device("meta"):
            self._model = AutoModelForCausalLM.from_config(self.config, attn_implementation="sdpa").eval()
        self._rotary = type(self._model.model.rotary_emb)(config=self.config).to(self._device)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self._model.model.layers)

    @property
    def host(self) -> Host:
        """The model as a host; only the weights of an open block are there."""
        return LlamaHost(self._model)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Read the tensors whose names begin with a prefix, in the precision of the files, by the rest of them."""
        from safetensors import safe_open

        found: dict[str, Tensor] = {}
        chosen = [name for name in self._files if name.startswith(prefix)]
        for file in dict.fromkeys(self._files[name] for name in chosen):
            with safe_open(file, framework="pt") as content:
                found |= {
                    name.removeprefix(prefix): content.get_tensor(name) for name in chosen if self._files[name] == file
                }
        return found

    @contextmanager
    def _loaded(self, module: nn.Module, prefix: str) -> Iterator[Any]:
        """A module with its weights, for as long as the context lasts."""
        state = {name: one.float().to(self._device) for name, one in self.tensors(prefix).items()}
        module.load_state_dict(state, assign=True)
        module.requires_grad_(False)
        try:
            yield module
        finally:
            module.to("meta")

    @contextmanager
    def block(self, layer: int) -> Iterator[Any]:
        """Read one block, and let go of it at the end of the context."""
        with self._loaded(self._model.model.layers[layer], f"model.layers.{layer}.") as block:
            yield block

    @torch.no_grad()
    def embed(self, ids: Int[Tensor, "story pos"]) -> Float[Tensor, "story pos d_model"]:
        """Embed rows of tokens."""
        with self._loaded(self._model.model.embed_tokens, "model.embed_tokens.") as embedding:
            return embedding(ids.to(self._device))

    @torch.no_grad()
    def run(
        self, block: Any, layer: int, hidden: Float[Tensor, "story pos d_model"]
    ) -> Float[Tensor, "story pos d_model"]:
        """Run a block that is open; padding on the right needs no mask."""
        n_pos = hidden.shape[1]
        position = torch.arange(n_pos, device=hidden.device).unsqueeze(0)
        back = position.T - position
        unseen = (back < 0) | (back >= (attention_window(self.config, layer) or n_pos))
        mask = torch.zeros(1, 1, n_pos, n_pos, device=hidden.device)
        mask = mask.masked_fill(unseen, torch.finfo(hidden.dtype).min)
        rotary = self._rotary(hidden, position)
        parts = []
        for rows in hidden.split(_STORIES_PER_BATCH):
            out = block(rows, attention_mask=mask, position_ids=position, position_embeddings=rotary)
            parts.append(out if isinstance(out, Tensor) else out[0])
        return torch.cat(parts)

    @torch.no_grad()
    def run_and_keep(
        self,
        block: Any,
        layer: int,
        hidden: Float[Tensor, "story pos d_model"],
        masks: Sequence[Bool[Tensor, "story pos"]],
    ) -> tuple[Float[Tensor, "story pos d_model"], list[Float[Tensor, "token d_model"]]]:
        """Run a block that is open, and keep what its MLP reads at the tokens of some masks."""
        seen: list[Tensor] = []
        with hooked([(block.mlp, lambda module, args, output: seen.append(args[0]))]):
            out = self.run(block, layer, hidden)
        read = torch.cat(seen)
        return out, [read[mask.to(read.device)] for mask in masks]

    @torch.no_grad()
    def losses(
        self, hidden: Float[Tensor, "story pos d_model"], ids: Int[Tensor, "story pos"], mask: Bool[Tensor, "story pos"]
    ) -> Float[Tensor, " token"]:
        """Cross-entropy of every token of a mask, given those before it, from the last residual stream."""
        tied = self.config.tie_word_embeddings
        row, position = mask[:, 1:].to(self._device).nonzero().unbind(1)
        following = ids.to(self._device)[row, position + 1]
        with self._loaded(self._model.model.norm, "model.norm."):
            rows = self._model.model.norm(hidden[row, position])
        found = []
        with self._loaded(self._model.lm_head, "model.embed_tokens." if tied else "lm_head.") as unembed:
            for some, wanted in zip(rows.split(_TOKENS_PER_BATCH), following.split(_TOKENS_PER_BATCH), strict=True):
                found.append(nn.functional.cross_entropy(unembed(some), wanted, reduction="none"))
        return torch.cat(found).double().cpu()


def tensor_files(folder: Path) -> dict[str, Path]:
    """File of each tensor of a folder of safetensors.

    Raises:
        ValueError: If there are none.
    """
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: folder / file for name, file in named.items()}
    file = folder / "model.safetensors"
    if not file.is_file():
        raise ValueError(f"model must have model.safetensors, or parts with their index, to be streamed, got {folder}.")
    with safe_open(file, framework="pt") as content:
        return dict.fromkeys(content.keys(), file)
