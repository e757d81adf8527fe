"""Small sizes, by the names that transformers' configurations have for them."""

VOCAB = 61
WINDOW = 8  # tokens that a layer with a window sees; texts are longer

# of every configuration that has a name: one meaning a line
SIZES = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCAB),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_dim", "emb_dim", "embedding_size"), 64),
    **dict.fromkeys(("lru_width", "word_embed_proj_dim", "attention_hidden_size", "hc_lowrank"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "dff", "dim_ff", "n_inner", "d_inner"), 64),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "feed_forward_size", "intermediate_size_mlp"), 64),
    **dict.fromkeys(("dense_intermediate_size", "prefix_dense_intermediate_size", "shared_intermediate_size"), 64),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("shared_experts_intermediate_size", "moe_shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 4),
    **dict.fromkeys(("encoder_layers", "num_encoder_layers", "num_decoder_layers", "num_blocks"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads", "num_query_groups"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(
        ("head_dim", "dim_head", "d_head", "attention_head_size", "attention_head_dim", "kv_channels"), 16
    ),
    **dict.fromkeys(("swa_head_dim", "rotary_dim", "linear_head_dim", "index_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "v_head_dim", "gated_norm_rank"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_heads"), 2),
    "linear_num_value_heads": 4,
    "index_n_heads": 16,  # few would often agree that tokens count nothing, and which of those are read is by chance
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups", "o_groups"), 2),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank", "laurel_rank", "hidden_size_per_layer_input", "d_rel"), 8),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 4),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "attention_window_size", "local_attention"), WINDOW),
    **dict.fromkeys(("sliding_window_size", "window_size", "block_size", "index_topk", "keep_window_size"), WINDOW),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"), 128),
    **dict.fromkeys(("context_length", "rel_extent"), 128),
    # none of what is drawn at random
    **dict.fromkeys(("activation_dropout", "attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0),
    **dict.fromkeys(("dropout", "hidden_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
    # of the parts that see and hear, which no text runs
    **dict.fromkeys(("image_size",), 32),
    **dict.fromkeys(("patch_size",), 16),
    # as a model that writes: of those that may be an encoder, or have one
    "is_decoder": True,
    "is_encoder_decoder": False,
    "causal": True,
    "tie_word_embeddings": False,
    # special tokens that no prompt has, and that end nothing
    **dict.fromkeys(("pad_token_id", "cls_token_id", "decoder_start_token_id"), 0),
    "bos_token_id": 1,
    **dict.fromkeys(("eos_token_id", "sep_token_id"), 2),
}
