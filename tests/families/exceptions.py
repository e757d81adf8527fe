"""What single families of models want besides small sizes, and those that cannot be built or read no text."""

from tests.families.sizes import VOCAB, WINDOW


_ALL_HEADS = {"num_key_value_heads": 4}  # of latent attention (MLA), which has as many of both
# patterns of four layers, so that every type of a family's layers occurs
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"] * 2}
_CONV = {"layer_types": ["conv", "full_attention"] * 2}
_HYBRID = {"layer_types": ["hybrid_sliding", "hybrid"] * 2}
_SHARED = {**_SLIDING, "num_kv_shared_layers": 2, "global_head_dim": 32}  # the last two read the first two's keys
_MAMBA2 = {"mamba_d_head": 16, "mamba_d_ssm": 128}
_ASSISTANT = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 0}

# of a single configuration, by its model type
OF_FAMILY: dict[str, dict] = {
    "axk1": _ALL_HEADS,
    "axk2": _ALL_HEADS,
    "bailing_hybrid": {"layer_group_size": 2, **_ALL_HEADS, "linear_num_heads": 4},
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 64, "patch_size": 4},
    "blt_local_encoder": {"hidden_size_global": 64},
    "blt_local_decoder": {"hidden_size_global": 64},
    "cohere_compass_text": {
        **_SLIDING,
        "rope_parameters": {
            name: {"rope_type": "default", "rope_theta": 1e4} for name in set(_SLIDING["layer_types"])
        },
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_v2": _ALL_HEADS,
    "deepseek_v3": _ALL_HEADS,
    "deepseek_v32": _ALL_HEADS,
    "deepseek_v4": {
        "layer_types": ["sliding_attention", "heavily_compressed_attention", "compressed_sparse_attention"] * 2,
        "num_hidden_layers": 6,
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "num_key_value_heads": 1,
    },
    "dots1": _SLIDING,
    "dots3_note_text": {
        **_ALL_HEADS,
        "layer_types": ["sliding_attention", "indexed_attention"] * 2,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 16,
    },
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense"] * 4, "adapter_in_dim": 64, "adapter_out_dim": 64},
    "dots3_note_audio_encoder": {"adapter_input_size": 64, "adapter_out_dim": 64, "downsample_hidden_size": 64},
    "falcon_h1": _MAMBA2,
    "gemma3_text": _SLIDING,
    "gemma3n_text": _SHARED,
    "gemma4_text": _SHARED,
    "gemma4_assistant": {"backbone_hidden_size": 64, "text_config": _ASSISTANT},
    "gemma4_unified_assistant": {"backbone_hidden_size": 64},
    "gemma4_unified_text": _SHARED,
    "gemma4_unified_vision": {"mm_embed_dim": 64, "mm_posemb_size": 16},
    "glm4_moe_lite": _ALL_HEADS,
    "glm_moe_dsa": _ALL_HEADS,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": _LINEAR,
    "hy_v4": _ALL_HEADS,
    "inkling2_text": _HYBRID,
    "inkling_text": _HYBRID,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {**_LINEAR, **_ALL_HEADS},
    "kolibri1": _SLIDING,
    "laguna": _SLIDING,
    "lfm2": _CONV,
    "lfm2_moe": _CONV,
    "longcat_flash": {"zero_expert_num": 2, "head_dim": 8, **_ALL_HEADS},
    "mamba2": {"head_dim": 32},
    "mellum": _SLIDING,
    "minicpm3": _ALL_HEADS,
    "mllama_text_model": {"cross_attention_layers": [1]},
    "moshi": {"audio_vocab_size": VOCAB},
    "mpt": {"attn_config": {"attn_pdrop": 0}},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": WINDOW,
        "indexer_compress_ratio": 2,
        "ple_layer_ids": [1],
        "ple_embed_dim": 64,
        "ngram_vocab_size_base": 64,
        "split_ngram_parts": 2,
        "heads_per_ngram": 2,
    },
    "reformer": {"axial_pos_embds_dim": [32, 32], "axial_pos_shape": [8, 16]},
    "roc_bert": {
        "pronunciation_vocab_size": VOCAB,
        "shape_vocab_size": VOCAB,
        "pronunciation_embed_dim": 64,
        "shape_embed_dim": 64,
    },
    "smollm3": {"use_sliding_window": True, "max_window_layers": 2},
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "youtu": _ALL_HEADS,
    "zamba": {
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "hybrid"],
    },
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1, **_HYBRID},
}

# configurations of several models, of which another class is the one that writes: the name of the part
PART = {"musicgen": "decoder", "musicgen_melody": "decoder"}
# families that are not built here, and why
NOT_BUILT = {
    "gemma3n": "its part that sees needs the package timm; its text part is gemma3n_text",
    "gemma4_assistant": "transformers refuses what its configuration has to be: all layers share keys and values",
}
# of those that are built: families that cannot be run on a text alone
NO_TEXT = {"gemma4_unified_assistant", "musicgen_decoder", "musicgen_melody_decoder"}
