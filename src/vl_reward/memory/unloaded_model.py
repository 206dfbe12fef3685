"""A checkpoint's model with its frozen parts and its adapter, as shapes without values."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights
from transformers.modeling_utils import local_torch_dtype
from trl.trainer.utils import disable_dropout_in_model

from ..models.vision_reward_model import VisionRewardModel
from ..models.whole_weights import whole_weights
from ..prefix_sharing.packed_rows import PREFIX


@dataclass
class Weight:
    """
    A weight as it is loaded.

    Args:
        numel (`int`), size (`float`):
            Its elements, and the bytes of each.
        is_trained (`bool`), is_quantized (`bool`):
            Whether it is trained, and whether bitsandbytes quantizes it.
    """

    numel: int
    size: float
    is_trained: bool
    is_quantized: bool


class UnloadedModel:
    """
    A model made from its config, on PyTorch's meta device. It takes seconds, and no memory, whatever its size.

    Args:
        model_class (`type`):
            The auto class that the recipe loads with.
        config ([`~transformers.PreTrainedConfig`]):
            The checkpoint's.
        dtype (`torch.dtype`):
            What weights are loaded in. A reward head is float32 all the same.
        attention (`str`, *optional*, defaults to `"sdpa"`):
            `"sdpa"` or `"eager"`.
        shares_prefixes (`bool`, *optional*, defaults to `False`):
            Whether attention is that of [`share_prefixes`].
        freeze (`Callable`, *optional*):
            Freezes what is not trained of a model.
        peft_config ([`~peft.PeftConfig`], *optional*):
            The adapter.
        bits (`int`, *optional*):
            4 or 8 for decoder layers that bitsandbytes quantizes.
        computes_in (`torch.dtype`, *optional*):
            What DeepSpeed or FSDP converts all weights to for a pass.
        drops_out (`bool`, *optional*, defaults to `False`):
            Whether dropout is on, an adapter's included.
        trains_in (`torch.dtype`, *optional*):
            The dtype of what is trained, if it is another one.
    """

    def __init__(
        self,
        model_class: type,
        config: PreTrainedConfig,
        dtype: torch.dtype,
        attention: str = "sdpa",
        shares_prefixes: bool = False,
        freeze: Callable | None = None,
        peft_config: PeftConfig | None = None,
        bits: int | None = None,
        computes_in: torch.dtype | None = None,
        drops_out: bool = False,
        trains_in: torch.dtype | None = None,
    ):
        self.config = config
        self.fake_mode = FakeTensorMode()
        config._attn_implementation = attention
        for part in (config, config.text_config, config.vision_config):
            part.dtype = dtype  # as `from_pretrained` does: a part is else made in the checkpoint's
        dtypes = local_torch_dtype(dtype, model_class.__name__)
        with whole_weights(), torch.device("meta"), no_init_weights(), dtypes:
            model = model_class.from_config(config, dtype=dtype)
            model.tie_weights()
            if freeze is not None:
                freeze(model)
            if peft_config is not None:
                if peft_config.modules_to_save is None and isinstance(model, VisionRewardModel):
                    peft_config.modules_to_save = model.trained_in_full(model)  # as VisionRewardTrainer does
                model = get_peft_model(model, peft_config)
        if not drops_out:
            disable_dropout_in_model(model)
        self.weights = []
        for name, weight in model.named_parameters():
            if trains_in is not None and weight.requires_grad:
                weight.data = weight.data.to(trains_in)
            in_layer = ".language_model.layers." in f".{name}" and weight.ndim == 2
            is_quantized = bits is not None and in_layer and not weight.requires_grad
            # bitsandbytes keeps a float32 scale for each block of 64 weights of 4 bits.
            size = (bits / 8 + (4 / 64 if bits == 4 else 0)) if is_quantized else weight.element_size()
            self.weights.append(Weight(weight.numel(), size, weight.requires_grad, is_quantized))
            if computes_in is not None:
                weight.data = weight.data.to(computes_in)
        self.model = self.on_fake_cpu(model.train())
        if shares_prefixes:
            self.backbone.language_model.config._attn_implementation = PREFIX + attention

    def on_fake_cpu(self, model: nn.Module) -> nn.Module:
        """Autocast and attention have no kernels for the meta device. Fake tensors take the CPU's."""
        cpu, fakes = torch.device("cpu"), {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    if parameter not in fakes:  # a tied weight stays tied
                        fake = FakeTensor(self.fake_mode, parameter.data, cpu)
                        fakes[parameter] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
                    module._parameters[name] = fakes[parameter]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = FakeTensor(self.fake_mode, buffer.to("meta"), cpu)
        return model

    @property
    def whole(self) -> nn.Module:
        """The model without PEFT around it."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def backbone(self) -> nn.Module:
        """The vision tower and the decoder, without the head."""
        return self.whole.model

    @property
    def largest_layer(self) -> int:
        """Elements of a decoder layer, or of the embedding where that is larger."""
        layer, embedding = self.backbone.language_model.layers[0], self.backbone.language_model.embed_tokens
        return max(sum(weight.numel() for weight in layer.parameters()), embedding.weight.numel())
