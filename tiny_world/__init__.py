"""The tiny world: the pictures, questions and tokenizer that the bundled checkpoint is trained and judged on."""
