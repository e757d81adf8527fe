"""How models and tokenizers are loaded where nobody asked for more: no code of theirs runs, no pickle is read.

Without a word on it, transformers *asks at the terminal* whether a repository's code may run, and falls back on
pickled weights; every `from_pretrained` of this package says something.
"""

NO_CODE = {"trust_remote_code": False}
SAFE_WEIGHTS = {"trust_remote_code": False, "use_safetensors": True}
