"""The actor: leases questions, has its SGLang engine answer them in the routed languages, gets them scored, submits."""
