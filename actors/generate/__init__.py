"""The generator actor: vLLM, and how a node of a tree gets its children."""
