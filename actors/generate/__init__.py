"""The generator actor: vLLM as methods see it, and how a node of a sentence tree gets its children."""
