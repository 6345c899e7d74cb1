"""A Llama made of its configuration alone: no weights are downloaded."""

from transformers import LlamaConfig, LlamaForCausalLM


def llama(hidden_size: int, layers: int = 2, heads: int = 2, context: int = 64) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256, hidden_size=hidden_size, intermediate_size=3 * hidden_size, num_hidden_layers=layers,
            num_attention_heads=heads, max_position_embeddings=context, use_cache=False, tie_word_embeddings=False,
        )
    )  # fmt: skip
