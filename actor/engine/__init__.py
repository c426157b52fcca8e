"""The inference engine of an actor: one SGLang server, or several of them behind an sglang-router."""
