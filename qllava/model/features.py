"""What the projector reads of an image: the vision tower's hidden state at `vision_feature_layer`.

In: a LLaVA and pixels, or what the tower made of them before. Out: features [images, patches, width]. Only the
layers up to the one that is read run, with the bits of the whole tower; and a frozen one runs without a graph.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionModel, SiglipVisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .tiles import pack_views, tiling_of


def layers_read(config: Any) -> list[int]:
    """Numbers of the hidden states that the projector reads, one behind the other; 0 is the embeddings'."""
    layers, count = config.vision_feature_layer, config.vision_config.num_hidden_layers
    every = [layers] if isinstance(layers, int) else layers
    return [layer if layer >= 0 else count + 1 + layer for layer in every]


def tower_features(llava: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """What the projector reads of these images: [images, patches, width], as the tower computes it.

    Args:
        llava: a `LlavaForConditionalGeneration`, not wrapped.
        pixel_values: [images, 3, edge, edge].
    """
    tower, wanted = llava.model.vision_tower, layers_read(llava.config)
    first = 1 if llava.config.vision_feature_select_strategy == "default" else 0  # without the class token
    if isinstance(tower, CLIPVisionModel | SiglipVisionModel):
        hidden = tower.embeddings(pixel_values)
        hidden = tower.pre_layrnorm(hidden) if isinstance(tower, CLIPVisionModel) else hidden
        states = {0: hidden}
        for number, layer in enumerate(list(tower.encoder.layers)[: max(wanted)], 1):
            hidden = layer(hidden, None)  # the second is a mask
            if number in wanted:
                states[number] = hidden
    else:
        states = tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
    # Contiguous, as kept features are: torch's linear adds the bias in another way to what is not, and bfloat16 shows it.
    return torch.cat([states[number][:, first:] for number in wanted], dim=-1).contiguous()


def install_features(llava: nn.Module) -> None:
    """Makes the model take its images by `tower_features`, or, given as `pixel_values` of three dimensions, as features that
    the tower has made before; and an image that no token stands for. (`mm_encoder_outputs` would take them, too, but transformers 5.17 does not know it.)"""

    def get_image_features(
        self: Any, pixel_values: torch.Tensor, image_sizes: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        features = pixel_values
        if pixel_values.dim() == 4:
            trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.vision_tower.parameters())
            with torch.set_grad_enabled(trains):
                features = tower_features(llava, pixel_values)
        projected = self.multi_modal_projector(features)
        if tiling is None:
            return BaseModelOutputWithPooling(pooler_output=list(projected))
        if (
            image_sizes is None
        ):  # an image that nothing reads; the row-end token is beside it, so that it has its gradient
            idle = torch.cat([projected.flatten(0, 1), self.image_newline.to(projected.dtype)[None]])
            return BaseModelOutputWithPooling(pooler_output=[idle])
        return BaseModelOutputWithPooling(pooler_output=pack_views(projected, image_sizes, self.image_newline, tiling))

    plain, tiling = llava.model.get_placeholder_mask, tiling_of(llava.config)

    def get_placeholder_mask(self: Any, input_ids: Any, inputs_embeds: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if input_ids is not None and not (input_ids == self.config.image_token_id).any():  # an image that nothing reads
            return torch.zeros_like(inputs_embeds, dtype=torch.bool)
        return plain(input_ids, inputs_embeds, *args, **kwargs)

    llava.model.get_image_features = types.MethodType(get_image_features, llava.model)
    llava.model.get_placeholder_mask = types.MethodType(get_placeholder_mask, llava.model)
