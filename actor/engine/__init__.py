"""The inference engine behind an actor: one SGLang server or several behind a router."""
