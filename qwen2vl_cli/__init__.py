"""Above the model: what `python qwen2vl_mini.py` and `qwen2vl-mini` do."""
