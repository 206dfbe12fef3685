"""The two families of the embedded world in 1.5 to 2 M parameters each."""

from transformers import PreTrainedConfig, Qwen2_5_VLConfig, Qwen3VLConfig


TEXT = {
    "vocab_size": 384,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,  # 0.02 is for widths of thousands: at 128 it takes twice the steps
    "bos_token_id": None,
}
VISION = {
    "depth": 3,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_heads": 4,
    "out_hidden_size": 128,
    "initializer_range": 0.1,
}
# Each family's own: rotary positions, and how images are encoded. A digit is four visual tokens in both.
QWEN2_5_VL = {
    "text_config": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
    },
    "vision_config": {"window_size": 56, "fullatt_block_indexes": [2]},
}
QWEN3_VL = {
    "text_config": {
        "head_dim": 32,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
}
FAMILIES = {"qwen2_5_vl": (Qwen2_5_VLConfig, QWEN2_5_VL), "qwen3_vl": (Qwen3VLConfig, QWEN3_VL)}


def build_config(tokenizer, family: str = "qwen2_5_vl") -> PreTrainedConfig:
    """A family's architecture, small: M-RoPE, grouped-query attention, and the vision tower that it has."""
    tokens = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    config_class, own = FAMILIES[family]
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return config_class(
        text_config=TEXT | special | own["text_config"],
        vision_config=VISION | own["vision_config"],
        tie_word_embeddings=False,
        **{f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in tokens.items()},
    )
