"""What a student is exported to. Nothing heavy is imported here."""

TARGETS = ("hf", "vllm", "gguf", "ollama")
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")  # that the package `gguf` writes
CONVERTER_TYPES = GGUF_TYPES[:4]  # that llama.cpp's own converter writes
